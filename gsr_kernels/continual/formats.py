"""Formats of a row, told apart by their keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from gsr_kernels.continual.examples import Conversation, Example

# of a program, and what a simplification is compared with
MORE_TEXTS = ("source", "prefix", "test")
ROLES = ("system", "user", "assistant")
# as ShareGPT calls them
SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant"}
# different ones of a task at most, from which its rows choose
MOST_LABELS = 200


@dataclass(frozen=True)
class Labelled(Example):
    """Row whose options are all labels of its task, once they are known; see ``with_labels``."""


def example_of(row: Any) -> Example:
    """Make an example of a row; keys that its format does not have are left alone. Raises ValueError, naming keys."""
    return (_maker(tuple(row)) if isinstance(row, Mapping) else _plain)(row)


def with_labels(path: Path, *lists: Sequence[Example]) -> list[tuple[Example, ...]]:
    """Return lists of rows of one task in which every labelled row chooses among all labels of the task.

    Raises ValueError, naming the path, for one label alone, and for so many that they are texts.
    """
    labels = tuple(sorted({row.completion for each in lists for row in each if isinstance(row, Labelled)}))
    if labels and not 2 <= len(labels) <= MOST_LABELS:
        raise ValueError(
            f"{path}: 'label' has {len(labels)} different values, and a choice is among 2 to {MOST_LABELS}: where they "
            "are texts, call the keys prompt and completion"
        )
    return [
        tuple(Example(row.prompt, row.completion, labels) if isinstance(row, Labelled) else row for row in each)
        for each in lists
    ]


def texts(row: Any, *keys: str) -> list[str]:
    """Return the texts of a row. Raises ValueError for what is no object, lacks one, or whose last one is empty."""
    wanted = ", ".join(f'"{key}": text' for key in keys)
    if not isinstance(row, Mapping):
        raise ValueError(f"each line must be {{{wanted}}}, got {row!r}")
    for key in keys:
        if key not in row:
            raise ValueError(
                f"{key!r} must be a text, got None: write each row as {{{wanted}}}; this one's keys: {_keys(row)}"
            )
        _check_text(key, row[key])
    if not row[keys[-1]]:
        raise ValueError(f"{keys[-1]!r} is empty: there is nothing to learn")
    return [row[key] for key in keys]


def _plain(row: Any) -> Example:
    prompt, completion = texts(row, "prompt", "completion")
    options = row.get("options", [])
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise ValueError(f"'options' must be a list of texts, got {options!r}")
    for option in options:
        _check_text("options", option)
    more = {key: row[key] for key in MORE_TEXTS if key in row}
    for key, text in more.items():
        _check_text(key, text)
    return Example(prompt, completion, tuple(options), **more)


def _chat(key: str, role_key: str, text_key: str) -> Callable[[Mapping[str, Any]], Example]:
    def make(row: Mapping[str, Any]) -> Example:
        listed: Any = row[key] if isinstance(row[key], list) else [None]
        turns: list[tuple[str, str]] = []
        for turn in listed:
            if not isinstance(turn, dict):
                raise ValueError(f'{key!r} must be a list of turns {{"{role_key}": role, "{text_key}": text}}')
            role: Any = turn.get(role_key)
            text: Any = turn.get(text_key)
            role = SPEAKERS.get(role, role) if isinstance(role, str) else role
            if role not in ROLES:
                raise ValueError(f"{key!r} has a turn whose {role_key!r} is {role!r}; there are {', '.join(ROLES)}")
            _check_text(text_key, text)
            if role == "assistant" and (not text or text.isspace()):
                raise ValueError(f"{key!r} has an empty turn of the assistant: there is nothing to learn")
            turns.append((role, text))
        # nobody learns from what follows the assistant's last words
        while turns and turns[-1][0] != "assistant":
            turns.pop()
        if not turns:
            raise ValueError(f"{key!r} has no turn of the assistant: there is nothing to learn")
        *before, (_, completion) = turns
        return Conversation(before[-1][1] if before else "", completion, turns=tuple(before))

    return make


def _asked(*keys: str) -> Callable[[Mapping[str, Any]], Example]:
    """Return a maker of rows with what is asked for on lines of its own, where it is, and then the last key's text."""

    def make(row: Mapping[str, Any]) -> Example:
        *asked, answer = texts(row, *(key for key in keys[:-1] if row.get(key)), keys[-1])
        return Example("\n\n".join(asked) + "\n", answer)

    return make


def _labelled(row: Mapping[str, Any]) -> Example:
    label = row["label"]
    text, label = texts({**row, "label": str(label) if isinstance(label, int) else label}, "text", "label")
    return Labelled(f"{text}\n", label)


def _choice(asked: str, options_key: str, answer_key: str) -> Callable[[Mapping[str, Any]], Example]:
    """Return a maker of rows that ask for the letter of an option; an answer may be the number of one, from 0 on."""

    def make(row: Mapping[str, Any]) -> Example:
        options, answer = row[options_key], row[answer_key]
        if isinstance(options, str):
            options = dict(line.split(maxsplit=1) for line in options.splitlines() if len(line.split()) > 1)
        elif isinstance(options, list):
            # MedQA on the hub has each letter beside its text
            keyed = all(isinstance(one, Mapping) and {"key", "value"} <= one.keys() for one in options)
            options = {one["key"]: one["value"] for one in options} if keyed else dict(zip(ascii_uppercase, options))
        if not isinstance(options, Mapping):
            raise ValueError(f"{options_key!r} must be a list, a text of lines or by letter, got {options!r}")
        # some have a place for more options than a question has
        there = {str(letter): text for letter, text in options.items() if text}
        if isinstance(answer, int) and 0 <= answer < len(there):
            answer = [*there][answer]
        if answer not in there or len(there) < 2:
            raise ValueError(f"{answer_key!r} names no single option, got {answer!r} of {', '.join(there) or 'none'}")
        lines = texts({asked: row[asked], **there}, *there, asked)
        listed = [f"{letter}. {text}" for letter, text in zip(there, lines)]
        return Example("\n".join([lines[-1], *listed, ""]), answer, tuple(there))

    return make


def _human_eval(row: Mapping[str, Any]) -> Example:
    test, called, prompt, solution = texts(row, "test", "entry_point", "prompt", "canonical_solution")
    return Example(prompt, solution, prefix=prompt, test=f"{test}\ncheck({called})")


def _mbpp(asked: str) -> Callable[[Mapping[str, Any]], Example]:
    """Return a maker of MBPP's rows, which are shown with their tests, as its authors ask them."""

    def make(row: Mapping[str, Any]) -> Example:
        prompt, code = texts(row, asked, "code")
        tests, before = row["test_list"], [row.get("test_setup_code") or "", *(row.get("test_imports") or ())]
        if not isinstance(tests, list) or not tests or not all(isinstance(line, str) for line in (*tests, *before)):
            raise ValueError(f"'test_list' must be a list of texts, got {tests!r}")
        shown = "\n".join(tests)
        asks = f"{prompt} Your code should pass these tests:\n\n{shown}\n"
        return Example(asks, code, test="\n".join(filter(None, [*before, shown])))

    return make


# the first whose keys a row has. Behind those that are written by hand: MMLU, CMB, MedQA, CMExam; HumanEval, MBPP and
# its sanitized part; MetaMathQA, MATH, Evol-Instruct, reactions of the ORD, cuneiform of Deep Past; TRACE last but one
FORMATS: dict[tuple[str, ...], Callable[[Mapping[str, Any]], Example]] = {
    ("prompt", "completion"): _plain,
    ("messages",): _chat("messages", "role", "content"),
    ("conversations",): _chat("conversations", "from", "value"),
    ("instruction", "output"): _asked("instruction", "input", "output"),
    ("question", "choices", "answer"): _choice("question", "choices", "answer"),
    ("question", "option", "answer"): _choice("question", "option", "answer"),
    ("question", "options", "answer_idx"): _choice("question", "options", "answer_idx"),
    ("Question", "Options", "Answer"): _choice("Question", "Options", "Answer"),
    ("question", "answer"): _asked("context", "question", "answer"),
    ("prompt", "canonical_solution", "test", "entry_point"): _human_eval,
    ("text", "code", "test_list"): _mbpp("text"),
    ("prompt", "code", "test_list"): _mbpp("prompt"),
    ("query", "response"): _asked("query", "response"),
    ("problem", "solution"): _asked("problem", "solution"),
    ("instruction", "response"): _asked("instruction", "response"),
    ("input", "PRODUCT"): _asked("input", "PRODUCT"),
    ("transliteration", "translation"): _asked("transliteration", "translation"),
    ("prompt", "answer"): _asked("prompt", "answer"),
    ("text", "label"): _labelled,
}


# rows of a file have the same keys, or nearly
@lru_cache
def _maker(keys: tuple[str, ...]) -> Callable[[Mapping[str, Any]], Example]:
    for wanted, make in FORMATS.items():
        if set(wanted) <= set(keys):
            return make
    # what such a row lacks is told of it alone
    if "prompt" in keys or "completion" in keys:
        return _plain
    known = "; ".join(map(", ".join, FORMATS))
    raise ValueError(f"no format has the keys {_keys(keys)}: call them as one does: {known}")


def _keys(row: Iterable[str]) -> str:
    return ", ".join(map(repr, row)) or "none"


def _check_text(key: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{key!r} must be a text, got {value!r}")
    try:
        # most texts are ASCII, and it costs nothing to see
        value.isascii() or value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{key!r} is no text: {error}") from error
