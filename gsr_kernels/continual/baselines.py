"""Baselines that a run's strict setting leaves out: they keep rows of earlier tasks, or a model beside the model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gsr_kernels.checks import check_count, check_number
from gsr_kernels.continual.examples import Example
from gsr_kernels.methods.lwf_own import divergence


@dataclass(frozen=True)
class Replay:
    """Experience replay: rows of earlier tasks are learned again among those of a task.

    Args:
        share: of the rows that are learned, in (0, 1).
        buffer: rows that are kept, as many of each earlier task.

    Raises ValueError where one is out of range.
    """

    share: float = 0.1
    buffer: int = 1000

    def __post_init__(self) -> None:
        if check_number("share", self.share, 0, 1, above=True) == 1:
            raise ValueError("share must be below 1: the task itself is to be learned")
        check_count("buffer", self.buffer)

    def rows(self, task: Sequence[Example], earlier: Sequence[Sequence[Example]], seed: int) -> list[Example]:
        """Return the rows of a task with those that are replayed, in turn from the earlier tasks, behind them."""
        drawn = random.Random(seed)
        each = -(-self.buffer // max(1, len(earlier)))
        kept = [row for rows in earlier for row in drawn.sample(rows, min(each, len(rows)))]
        wanted = round(len(task) * self.share / (1 - self.share)) if kept else 0
        again: list[Example] = []
        while len(again) < wanted:
            again += drawn.sample(kept, len(kept))
        return [*task, *again[:wanted]]


@dataclass(frozen=True)
class LwF:
    """Learning without forgetting (Li and Hoiem 2016): what the model said before the task is learned beside it.

    The loss gains ``lam T² KL(p_before ‖ p)`` of softmaxes at temperature T: of a classifier among the options of each
    earlier task, of a model that writes at every token that it learns.

    Args:
        lam: its weight, at least 0.
        temperature: T, above 0.

    Raises ValueError where one is out of range.
    """

    lam: float = 1.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        check_number("lam", self.lam, 0)
        check_number("temperature", self.temperature, 0, above=True)

    def term(self, kind: Any, logits: Tensor, before: Tensor, labels: Tensor, items: Tensor | float | None) -> Tensor:
        """Return the term of a batch from the logits of both, a mean over its labels or a sum over ``items`` labels."""
        # what counts for nothing has no label
        learned = labels >= 0
        if kind.name == "classifier":
            owner = kind.owner[: logits.shape[-1]].to(logits.device)
            # groups of options are numbered as their tasks come
            own = owner[labels.clamp(min=0)]
            total = logits.sum() * 0
            for group in range(int(owner.max())):
                rows = learned & (own > group)
                ours, theirs = (one[rows][:, owner == group] for one in (logits, before))
                total = total + divergence(ours, theirs, self.temperature)
        else:
            # a decoder's logits are of the next token
            shift = int(kind.name == "causal")
            learned = learned[:, shift:]
            ours, theirs = (one[:, : one.shape[1] - shift][learned] for one in (logits, before))
            total = divergence(ours, theirs, self.temperature)
        return self.lam * total / (learned.sum().clamp(min=1) if items is None else items)
