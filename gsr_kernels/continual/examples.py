"""Rows of text, and the tasks that they make."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

# rows of a task that are drawn for the score, at most
TEST_ROWS = 200
R = TypeVar("R")

TEXTS = ("source", "prefix", "test")


@dataclass(frozen=True)
class Example:
    """One row. ``options`` are the answers to choose from, where it is a choice; ``completion`` is one of them.

    ``source``: what SARI compares with, by default the prompt. ``prefix`` and ``test``: program text around a
    completion that is to be run (pass@1). ``goes_on``: the text does not end with the completion.

    Raises:
        ValueError: options without the completion, one of them empty or given twice, or fewer than two.
    """

    prompt: str
    completion: str
    options: tuple[str, ...] = ()
    source: str = ""
    prefix: str = ""
    test: str = ""
    goes_on: bool = False

    def __post_init__(self) -> None:
        if not self.options:
            return
        if len(set(self.options)) < max(2, len(self.options)) or not all(map(str.strip, self.options)):
            raise ValueError(f"'options' must be two texts or more, all different and not empty, got {self.options}")
        if self.completion not in self.options:
            raise ValueError(f"'completion' {self.completion!r} is none of the options {', '.join(self.options)}")

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Example:
        """From a row of JSON; keys that are not its fields are left alone. Raises ValueError, naming the key."""
        options = row.get("options", [])
        if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
            raise ValueError(f"'options' must be a list of texts, got {options!r}")
        for key in TEXTS:
            if not isinstance(row.get(key, ""), str):
                raise ValueError(f"{key!r} must be a text, got {row[key]!r}")
        for text in (*options, *(row.get(key, "") for key in TEXTS)):
            if not text.isprintable() and any("\ud800" <= sign <= "\udfff" for sign in text):
                raise ValueError(f"{text!r} is no text: it holds half of a surrogate pair")
        texts = {key: row[key] for key in TEXTS if key in row}
        return cls(row["prompt"], row["completion"], tuple(options), **texts)


@dataclass(frozen=True)
class TextTask:
    """A task as one seed meets it, and what it is scored by."""

    name: str
    metric: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]

    @property
    def options(self) -> tuple[str, ...]:
        """Every option of its rows, in the order of their first occurrence."""
        return tuple(dict.fromkeys(option for row in (*self.train, *self.test) for option in row.options))


@dataclass(frozen=True)
class Source:
    """All rows of a task as they were read. Without ``test`` every seed draws its own split of ``train``.

    ``metric``: the name of an evaluator; None: accuracy where every row is a choice, else exact match.
    """

    name: str
    about: str
    train: tuple[Example, ...]
    test: tuple[Example, ...] = ()
    metric: str | None = None

    def draw(self, seed: int, train_rows: int | None = None, test_rows: int | None = None) -> TextTask:
        """The rows of one seed, at most so many of each kind."""
        train, test = self.train, self.test
        if not test:
            train, test = split(self.train, seed)
        return TextTask(self.name, self.scored_by, _some(train, train_rows, seed), _some(test, test_rows, seed))

    @property
    def scored_by(self) -> str:
        """The name of the evaluator."""
        if self.metric is not None:
            return self.metric
        return "accuracy" if all(row.options for row in (*self.train, *self.test)) else "exact"

    def scored(self, metric: str | None) -> Source:
        """The same rows under another metric; None changes nothing."""
        return self if metric is None else replace(self, metric=metric)

    def described(self) -> dict[str, Any]:
        """For config.json; the digest is equal where two machines learn the same."""
        digest = hashlib.sha256(repr((self.train, self.test)).encode()).hexdigest()[:16]
        counts = {"train": len(self.train), "test": len(self.test)}
        return {"about": self.about, "metric": self.scored_by, "rows": counts, "sha256": digest}


def split(rows: Sequence[R], seed: int) -> tuple[tuple[R, ...], tuple[R, ...]]:
    """Return the distinct rows, shuffled, to train on and to score by: of these a fifth, at most ``TEST_ROWS``."""
    # a dict keeps the order, so that a seed means the same everywhere
    distinct = list(dict.fromkeys(rows))
    shuffled = random.Random(seed).sample(distinct, len(distinct))
    count = min(TEST_ROWS, max(1, len(shuffled) // 5))
    return tuple(shuffled[count:]), tuple(shuffled[:count])


def check_apart(path: Path, train: Sequence[Example], test: Sequence[Example]) -> None:
    """Raises ValueError where the rows that score are all among those that are learned."""
    if set(test) <= set(train):
        raise ValueError(
            f"{path}: every row to score by is a row to learn too: a score would tell what was learned by heart"
        )


def _some(rows: tuple[Example, ...], count: int | None, seed: int) -> tuple[Example, ...]:
    if count is None or len(rows) <= count:
        return rows
    return tuple(random.Random(seed).sample(rows, count))
