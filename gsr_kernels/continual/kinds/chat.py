"""Conversations by a tokenizer's chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from gsr_kernels.continual.examples import Conversation

Turn = tuple[str, str]
# a text that no template has
ANSWER = "gsr-kernels-answer"


def template(tokenizer: Any) -> str:
    """Return the tokenizer's chat template; ValueError where it has none."""
    if not tokenizer.chat_template:
        raise ValueError(
            "turns of chat want a tokenizer with a chat template, which --model's has not: give a model with one, or "
            "write the rows as prompt and completion"
        )
    return tokenizer.get_chat_template()


def render(tokenizer: Any, turns: Sequence[Turn], ask: bool = False, **settings: Any) -> Any:
    """Return turns as the template writes them, by default as a text; ``ask`` begins an answer behind them.

    Raises ValueError where there is no template, or the template refuses the turns.
    """
    template(tokenizer)
    messages = [{"role": role, "content": text} for role, text in turns]
    given = {"tokenize": False, "return_dict": False} | settings
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=ask, **given)
    except TemplateError as error:
        roles = ", ".join(role for role, _ in turns)
        raise ValueError(f"the tokenizer's chat template refuses turns of {roles}: {error}") from error


def encode(tokenizer: Any, row: Conversation) -> tuple[list[int], list[bool]]:
    """Return a conversation's tokens, and which of them the assistant wrote.

    The template says which, where it marks them by ``{% generation %}``. Else they are those between the turns before
    an answer, with its beginning, and the turns up to it, which must each be how the whole conversation begins.

    Raises ValueError where they are not, or the template refuses the turns.
    """
    turns = (*row.turns, ("assistant", row.completion))
    if re.search(r"\{%-?\s*generation\b", template(tokenizer)):
        marked = render(tokenizer, turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        return list(marked["input_ids"]), [bool(mark) for mark in marked["assistant_masks"]]
    text = render(tokenizer, turns)
    spans = []
    for index, (role, _) in enumerate(turns):
        if role == "assistant":
            before, through = render(tokenizer, turns[:index], ask=True), render(tokenizer, turns[: index + 1])
            if not (text.startswith(before) and text.startswith(through)):
                raise ValueError(
                    f"the tokenizer's chat template writes turn {index + 1} of {len(turns)} otherwise when others "
                    "follow it: give it a template with {% generation %} marks, or each answer a row of its own"
                )
            spans.append((len(before), len(through)))
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    written = [any(begin <= at < end for begin, end in spans) for at, _ in found["offset_mapping"]]
    return list(found["input_ids"]), written


def end_of_turn(tokenizer: Any) -> int | None:
    """Return the special token that the template puts behind an answer, the first one; None: it puts none."""
    text = render(tokenizer, [("user", "a"), ("assistant", ANSWER)])
    behind = tokenizer(text.rpartition(ANSWER)[2], add_special_tokens=False)["input_ids"]
    return next((token for token in behind if token in tokenizer.added_tokens_decoder), None)
