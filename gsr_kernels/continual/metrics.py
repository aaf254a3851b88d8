"""Results of a sequential run: a matrix of scores a method and seed, and what is read from it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from numbers import Real
from typing import Any

from gsr_kernels.continual.methods import bound_of

# the name of row 0 wherever a row is named by the task it follows
BEFORE = "before"
# the singular values of some weights, descending, by parameter name
Spectra = dict[str, list[float]]


class ResultMatrix:
    """``a_j(i)``: the score on task ``i`` after training task ``j``.

    Row 0, named ``BEFORE``, is the model before any training and is optional; row ``j`` follows task ``j = 1 .. T``.
    A ``known`` task is one that the model could do before the first task and never trains on (MMLU in Table 2 of the
    GSR paper): it comes before all tasks and its first value is that of row 0.

    ``fra``, ``ap`` and ``bwt`` take ``after``, the last task to count (None: the last of all): the metric of the run as
    if it had ended there. "Learned" tasks are the known ones and the tasks up to ``after``; ``N`` is their number.
    A metric that needs a cell which was never set raises ``ValueError`` and names the cell.

    Raises ValueError for no task, a text in place of names, a name used twice, or a task called ``BEFORE``.
    """

    def __init__(self, tasks: Sequence[str], known: Sequence[str] = ()) -> None:
        for what, names in (("tasks", tasks), ("known", known)):
            if isinstance(names, str):
                raise ValueError(f"{what} must be a list of names, not the text {names!r}")
        self.tasks = tuple(tasks)
        self.known = tuple(known)
        self.columns = self.known + self.tasks
        if not self.tasks:
            raise ValueError("tasks is empty: a result matrix needs at least one task")
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if twice:
            raise ValueError(f"tasks and known name {', '.join(twice)} more than once: every task needs its own name")
        if BEFORE in self.columns:
            raise ValueError(f"no task may be called {BEFORE!r}: that is the name of the row before any training")
        self.rows = (BEFORE, *self.tasks)
        self._scores: dict[str, dict[str, float]] = {row: {} for row in self.rows}

    @property
    def forgets(self) -> bool:
        """Return True where something is learned before the last task, so that it can be forgotten."""
        return len(self.known) + len(self.tasks) > 1

    def record(self, after: str, scores: Mapping[str, float]) -> None:
        """Set cells of the row after a task or ``BEFORE``; ValueError, and nothing set, for no task or finite score."""
        self._index(after)
        for name, score in scores.items():
            if name not in self.columns:
                raise ValueError(f"scores names {name!r}, which is no task; there are {', '.join(self.columns)}")
            if not isinstance(score, Real) or not math.isfinite(score):
                raise ValueError(f"scores[{name!r}] is {score!r}: it must be a finite number")
        self._scores[after].update({name: float(score) for name, score in scores.items()})

    def take(self, other: ResultMatrix) -> None:
        """Set what another matrix holds, of fewer tasks perhaps."""
        for row, scores in other._scores.items():
            self.record(row, scores)

    def lacking(self, after: str) -> list[str]:
        """Return the columns that the row after a task, or ``BEFORE``, has no score for."""
        self._index(after)
        return [task for task in self.columns if task not in self._scores[after]]

    def score(self, task: str, after: str) -> float:
        """Return ``a_j(i)`` for ``i = task`` and ``j = after`` (or ``BEFORE``)."""
        self._index(after)
        if task not in self._scores[after]:
            when = "before any training" if after == BEFORE else f"after {after}"
            raise ValueError(f"the score on {task} {when} is missing")
        return self._scores[after][task]

    def fra(self, after: str | None = None) -> float:
        """Forgetting, GSR eq. 9: ``1/(N-1) sum_{i<N} [max_{i<=k<=N-1} a_k(i) - a_N(i)]``; lower is better."""
        last = self._last(after)
        return statistics.fmean(
            max(self.score(task, row) for row in self.rows[learned:last]) - self.score(task, self.rows[last])
            for task, learned in self._learned_before(last, "F.Ra")
        )

    def ap(self, after: str | None = None) -> float:
        """Average performance, GSR eq. 10: the mean of one row over ALL columns, tasks still to come included."""
        return statistics.fmean(self.score(task, after or self.tasks[-1]) for task in self.columns)

    def bwt(self, after: str | None = None) -> float:
        """Backward transfer: ``1/(N-1) sum_{i<N} [a_N(i) - a_i(i)]``; negative is forgetting."""
        last = self._last(after)
        return statistics.fmean(
            self.score(task, self.rows[last]) - self.score(task, self.rows[learned])
            for task, learned in self._learned_before(last, "BWT")
        )

    def acc(self, rows: Mapping[str, int]) -> float:
        """Accuracy, PS-LoRA: ``sum n_i a_N(i) / sum n_i`` over all columns, n_i a task's test rows."""
        unknown = [task for task in self.columns if not rows.get(task)]
        if unknown:
            raise ValueError(f"Acc needs the number of test rows of {unknown[0]}")
        weighted = sum(rows[task] * self.score(task, self.tasks[-1]) for task in self.columns)
        return weighted / sum(rows[task] for task in self.columns)

    def fwt(self, scratch: ResultMatrix | None) -> float:
        """Forward transfer: ``1/(T-1) sum_{i>=2} [a_{i-1}(i) - b(i)]``, b of a model that learned task i alone."""
        if scratch is None:
            raise ValueError("FWT needs a model that learned each task alone (--bounds)")
        if len(self.tasks) < 2:
            raise ValueError("FWT needs two trained tasks")
        return statistics.fmean(
            self.score(task, before) - scratch.score(task, task) for before, task in pairwise(self.tasks)
        )

    def fr(self) -> float:
        """Forgetting, PS-LoRA: ``1/(N-1) sum_{i<N} [max_{1<=j<=i} a_j(i) - a_N(i)]``; lower is better."""
        last = self._last(None)
        return statistics.fmean(
            max(self.score(task, row) for row in self.rows[min(1, learned) : learned + 1])
            - self.score(task, self.rows[last])
            for task, learned in self._learned_before(last, "FR")
        )

    def aaa(self) -> float:
        """Average anytime accuracy: ``mean_t mean_{i<=t} a_t(i)``."""
        return statistics.fmean(
            statistics.fmean(self.score(task, row) for task in (*self.known, *self.tasks[:t]))
            for t, row in enumerate(self.tasks, 1)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the matrix for JSON; a cell that was never set is None."""
        cells = [[scores.get(task) for task in self.columns] for scores in self._scores.values()]
        return {"tasks": list(self.tasks), "known": list(self.known), "cells": cells}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ResultMatrix:
        """Return the matrix of which ``to_dict`` made this. Raises ValueError where it is none."""
        try:
            matrix = cls(data["tasks"], data["known"])
            for row, cells in zip(matrix.rows, data["cells"], strict=True):
                scores = dict(zip(matrix.columns, cells, strict=True))
                matrix.record(row, {task: score for task, score in scores.items() if score is not None})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"data is no result matrix: {error}") from error
        return matrix

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResultMatrix) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def _index(self, after: str) -> int:
        if after not in self.rows:
            raise ValueError(f"after is {after!r}, which is no task; there are {', '.join(self.tasks)}")
        return self.rows.index(after)

    def _last(self, after: str | None) -> int:
        return self._index(after or self.tasks[-1])

    def _learned_before(self, last: int, metric: str) -> list[tuple[str, int]]:
        """Return the tasks learned before a row, each with the index of the row of its first learned score."""
        if last == 0 or (not self.known and last == 1):
            raise ValueError(f"{metric} needs a trained task and a learned one to look back on")
        return [(task, 0) for task in self.known] + [(task, row) for row, task in enumerate(self.tasks[: last - 1], 1)]


@dataclass
class Results:
    """Measured results: what a score is; matrices of every method and bound, by title, one a seed; of the first seed
    the spectra of each method, by title, after every task and ``BEFORE``, and steps and losses in every task.
    """

    score: str
    matrices: dict[str, list[ResultMatrix]]
    spectra: dict[str, dict[str, Spectra]] = field(default_factory=dict)
    losses: dict[str, dict[str, list[tuple[int, float]]]] = field(default_factory=dict)
    # methods that ended at a seed, and why, by title
    diverged: dict[str, str] = field(default_factory=dict)
    # test rows of each task, the numbers of the seeds, and of each method the bound that learned every task alone
    rows: dict[str, int] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    scratch: dict[str, str] = field(default_factory=dict)
    # the method that the others are compared with, by title
    baseline: str = "SeqFT"
    # as ``matrices``, of the validation rows
    validation: dict[str, list[ResultMatrix]] = field(default_factory=dict)
    # of each method that is swept, by its title, the titles of its values
    sweeps: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0

    def methods(self) -> dict[str, list[ResultMatrix]]:
        """Return the matrices without the bounds'."""
        return {title: each for title, each in self.matrices.items() if not bound_of(title)}
