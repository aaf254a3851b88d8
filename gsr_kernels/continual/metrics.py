"""The result matrix of a sequential run, and what is read from it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real

import numpy as np

# the name of row 0 wherever a row is named by the task it follows
BEFORE = "before"


def _check_finite(what: str, value: float) -> None:
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{what} is {value!r}: it must be a finite number")


class ResultMatrix:
    """``a_j(i)``: the score on task ``i`` after training task ``j``.

    Row 0, named ``BEFORE``, is the model before any training and is optional; row ``j`` follows task ``j = 1 .. T``.
    A ``known`` task is one that the model could do before the first task and never trains on (MMLU in Table 2 of the
    GSR paper): it comes before all tasks and its first value is that of row 0.

    Every metric takes ``after``, the name of the last task to count (None: the last of all): the metric of the run as
    if it had ended there. "Learned" tasks are the known ones and the tasks up to ``after``; ``N`` is their number.
    A metric that needs a cell which was never set raises ``ValueError`` and names the cell.

    Args:
        tasks: names, in the order of training; at least one, all different.
        known: names of the tasks known before.

    Raises:
        ValueError: no task, a text in place of names, a name used twice, or a task called ``BEFORE``.
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
        # NaN marks a cell that was never set: `record` refuses any other way for it to get here
        self._cells = np.full((len(self.tasks) + 1, len(self.columns)), math.nan)

    def record(self, after: str, scores: Mapping[str, float]) -> None:
        """Sets cells of the row after task ``after`` (or ``BEFORE``), ``scores`` by task name.

        Raises:
            ValueError: a name that is no task, or a score that is no finite number; nothing is set then.
        """
        row = self._row(after)
        for name, score in scores.items():
            if name not in self.columns:
                raise ValueError(f"scores names {name!r}, which is no task; there are {', '.join(self.columns)}")
            _check_finite(f"scores[{name!r}]", score)
        for name, score in scores.items():
            self._cells[row, self.columns.index(name)] = score

    def score(self, task: str, after: str) -> float:
        """``a_j(i)`` for ``i = task`` and ``j = after`` (or ``BEFORE``)."""
        return self._cell(self._row(after), self._column(task))

    def fra(self, after: str | None = None) -> float:
        """Forgetting, GSR eq. 9: ``1/(N-1) sum_{i<N} [max_{i<=k<=N-1} a_k(i) - a_N(i)]``; lower is better."""
        last = self._last(after)
        return self._mean(
            max(self._cell(row, column) for row in range(learned, last)) - self._cell(last, column)
            for column, learned in self._learned_before(last, "F.Ra")
        )

    def ap(self, after: str | None = None) -> float:
        """Average performance, GSR eq. 10: the mean of one row over ALL columns, tasks still to come included."""
        last = self._last(after)
        return self._mean(self._cell(last, column) for column in range(len(self.columns)))

    def acc(self, rows: Mapping[str, int], after: str | None = None) -> float:
        """Acc (PS-LoRA): ``sum n_i a_N(i) / sum n_i`` over the learned tasks, ``rows[i] = n_i`` their test rows.

        Raises:
            ValueError: a learned task without a positive number of rows.
        """
        last = self._last(after)
        learned = [column for column, _ in self._learned(last)]
        counts = [rows.get(self.columns[column], 0) for column in learned]
        for column, count in zip(learned, counts):
            _check_finite(f"rows[{self.columns[column]!r}]", count)
            if count <= 0:
                raise ValueError(f"rows[{self.columns[column]!r}] must be a positive number of test rows, not {count}")
        return sum(n * self._cell(last, column) for n, column in zip(counts, learned)) / sum(counts)

    def bwt(self, after: str | None = None) -> float:
        """Backward transfer: ``1/(N-1) sum_{i<N} [a_N(i) - a_i(i)]``; negative is forgetting."""
        last = self._last(after)
        return self._mean(
            self._cell(last, column) - self._cell(learned, column)
            for column, learned in self._learned_before(last, "BWT")
        )

    def fwt(self, scratch: Mapping[str, float], after: str | None = None) -> float:
        """Forward transfer: ``1/(T-1) sum_{i>=2} [a_{i-1}(i) - scratch(i)]`` over the trained tasks.

        ``scratch[i]`` is the score on task ``i`` of a model that is fresh to it. Known tasks, never trained, stay out.

        Raises:
            ValueError: a task from the second on without a finite score in ``scratch``, or fewer than two tasks.
        """
        last = self._last(after)
        later = self.tasks[1:last]
        if not later:
            raise ValueError("FWT needs at least two trained tasks")
        missing = [name for name in later if name not in scratch]
        if missing:
            raise ValueError(f"scratch has no score for {', '.join(missing)}")
        for name in later:
            _check_finite(f"scratch[{name!r}]", scratch[name])
        return self._mean(
            self._cell(row, self._column(name)) - scratch[name] for row, name in enumerate(later, start=1)
        )

    def fr(self, after: str | None = None) -> float:
        """FR (PS-LoRA): ``1/(N-1) sum_{i<N} [max_{1<=j<=i} a_j(i) - a_N(i)]``; a known task has its row 0 alone."""
        last = self._last(after)
        return self._mean(
            max(self._cell(row, column) for row in range(min(1, learned), learned + 1)) - self._cell(last, column)
            for column, learned in self._learned_before(last, "FR")
        )

    def aaa(self, after: str | None = None) -> float:
        """Average anytime accuracy: ``mean_t mean_{i<=t} a_t(i)`` over the rows ``t = 1 .. T``."""
        last = self._last(after)
        if last == 0:
            raise ValueError("AAA needs at least one trained task")
        return self._mean(
            self._mean(self._cell(row, column) for column, _ in self._learned(row)) for row in range(1, last + 1)
        )

    def to_json(self) -> str:
        """The matrix as JSON; a cell that was never set is null."""
        cells = [[None if math.isnan(cell) else cell for cell in row] for row in self._cells.tolist()]
        return json.dumps({"tasks": self.tasks, "known": self.known, "cells": cells})

    @classmethod
    def from_json(cls, text: str) -> ResultMatrix:
        """The matrix that ``to_json`` wrote.

        Raises:
            ValueError: the text is no such matrix.
        """
        try:
            data = json.loads(text)
            matrix = cls(data["tasks"], data["known"])
            cells = np.array(data["cells"], dtype=float)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"text is no result matrix: {error}") from error
        if cells.shape != matrix._cells.shape or np.isinf(cells).any():
            raise ValueError(f"text is no result matrix: cells must be {matrix._cells.shape} finite numbers or null")
        matrix._cells = cells
        return matrix

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResultMatrix) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]

    def _row(self, after: str) -> int:
        if after == BEFORE:
            return 0
        if after not in self.tasks:
            raise ValueError(f"after is {after!r}, which is no task; there are {', '.join(self.tasks)}")
        return self.tasks.index(after) + 1

    def _last(self, after: str | None) -> int:
        return len(self.tasks) if after is None else self._row(after)

    def _column(self, task: str) -> int:
        if task not in self.columns:
            raise ValueError(f"task is {task!r}; there are {', '.join(self.columns)}")
        return self.columns.index(task)

    def _cell(self, row: int, column: int) -> float:
        cell = self._cells[row, column]
        if math.isnan(cell):
            when = f"after {self.tasks[row - 1]}" if row else "before any training"
            raise ValueError(f"the score on {self.columns[column]} {when} is missing")
        return float(cell)

    def _learned(self, last: int) -> list[tuple[int, int]]:
        """The learned tasks, each with the row of its first learned score."""
        return [(column, max(0, column - len(self.known) + 1)) for column in range(len(self.known) + last)]

    def _learned_before(self, last: int, metric: str) -> list[tuple[int, int]]:
        earlier = self._learned(last)[:-1]
        if not earlier or last == 0:
            raise ValueError(f"{metric} needs a trained task and a learned one to look back on")
        return earlier

    @staticmethod
    def _mean(values: Iterable[float]) -> float:
        values = list(values)
        return sum(values) / len(values)
