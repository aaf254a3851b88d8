"""Rows of text, and the tasks that they make."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

# rows of a task that are drawn for the score, at most
TEST_ROWS = 200
R = TypeVar("R")


@dataclass(frozen=True)
class Example:
    """One row. ``options`` are the answers to choose from, where it is a choice; ``completion`` is one of them.

    ``source``: what SARI compares with, by default the prompt. ``prefix`` and ``test``: program text around a
    completion that is to be run (pass@1). ``goes_on``: the text does not end with the completion.

    Raises ValueError for options without the completion, one of them empty or given twice, or fewer than two.
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


@dataclass(frozen=True)
class Conversation(Example):
    """Row of chat: the turns, each a role and a text, before the ``completion``, which is the assistant's last turn.

    All turns of the assistant are learned. ``prompt`` is the last text before the completion.
    """

    turns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Source:
    """Rows of a task, as read or as one seed draws them; without ``test`` a seed draws a split of ``train``.

    ``validation`` rows choose among settings, and are neither learned nor in the test's scores.
    """

    name: str
    about: str
    train: tuple[Example, ...]
    test: tuple[Example, ...] = ()
    # an evaluator; None: accuracy where every row is a choice, else exact match
    metric: str | None = None
    validation: tuple[Example, ...] = ()

    @property
    def rows(self) -> tuple[Example, ...]:
        """Return all rows."""
        return (*self.train, *self.test, *self.validation)

    def draw(
        self, seed: int, train_rows: int | None = None, test_rows: int | None = None, share: float = 0.0
    ) -> Source:
        """Draw the rows of one seed, at most so many to learn and to score by.

        ``share`` of those to learn are held out for validation, where the task has no such rows of its own.

        Raises ValueError where that leaves nothing to learn.
        """
        train, test, validation = self.train, self.test, self.validation
        if not test:
            train, test = split(self.train, seed)
        if share and not validation:
            train, validation = _hold_out(self.name, train, share, seed)
        train, test, validation = (
            _some(rows, most, seed) for rows, most in ((train, train_rows), (test, test_rows), (validation, test_rows))
        )
        return replace(self, metric=self.scored_by, train=train, test=test, validation=validation)

    @property
    def scored_by(self) -> str:
        """Return the name of the evaluator."""
        if self.metric is not None:
            return self.metric
        return "accuracy" if all(row.options for row in self.rows) else "exact"

    def described(self) -> dict[str, Any]:
        """Describe it for config.json; the digest is equal where two machines learn the same."""
        splits = {"train": self.train, "test": self.test}
        if self.validation:
            splits["validation"] = self.validation
        digest = hashlib.sha256(repr((*splits.values(),)).encode()).hexdigest()[:16]
        counts = {name: len(rows) for name, rows in splits.items()}
        return {"about": self.about, "metric": self.scored_by, "rows": counts, "sha256": digest}


def split(rows: Sequence[R], seed: int) -> tuple[tuple[R, ...], tuple[R, ...]]:
    """Return the distinct rows, shuffled, to train on and to score by: of these a fifth, at most ``TEST_ROWS``."""
    # a dict keeps the order, so that a seed means the same everywhere
    distinct = list(dict.fromkeys(rows))
    shuffled = random.Random(seed).sample(distinct, len(distinct))
    count = min(TEST_ROWS, max(1, len(shuffled) // 5))
    return tuple(shuffled[count:]), tuple(shuffled[:count])


def _hold_out(
    task: str, rows: Sequence[Example], share: float, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Return the rows to learn, as they come, and a share of the distinct ones, which are not among them."""
    distinct = list(dict.fromkeys(rows))
    count = max(1, round(share * len(distinct)))
    if count >= len(distinct):
        raise ValueError(f"validation {share} leaves no row of {task} to learn, which has {len(distinct)} distinct")
    held = dict.fromkeys(random.Random(seed).sample(distinct, count))
    return tuple(row for row in rows if row not in held), tuple(held)


def _some(rows: tuple[Example, ...], count: int | None, seed: int) -> tuple[Example, ...]:
    if count is None or len(rows) <= count:
        return rows
    return tuple(random.Random(seed).sample(rows, count))
