"""Baselines that a run's strict setting leaves out: they keep rows of earlier tasks, or a model beside the model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gsr_kernels.checks import check_number
from gsr_kernels.continual.examples import Example


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
        check_number("buffer", self.buffer, 1)

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

    With ``own_rows`` it is text that the model wrote itself before the task that is learned beside it, as in
    pseudorehearsal (Robins 1995) and self-synthesized rehearsal (arXiv 2403.01244): nothing of earlier tasks is kept.

    The loss gains ``lam T² KL(p_before ‖ p)`` of softmaxes at temperature T: of a classifier among the options of each
    earlier task, of a model that writes at every token that it learns.

    Args:
        lam: its weight, at least 0.
        temperature: T, above 0.
        own_rows: rows of the model's own text in each step, in place of the task's; for decoders. 0: none.
        own_tokens: of such a row, at least 2.

    Raises ValueError where one is out of range.
    """

    lam: float = 1.0
    temperature: float = 2.0
    own_rows: int = 0
    own_tokens: int = 64

    def __post_init__(self) -> None:
        check_number("own_rows", self.own_rows, 0)
        check_number("own_tokens", self.own_tokens, 2)
        check_number("lam", self.lam, 0)
        check_number("temperature", self.temperature, 0, above=True)

    def term(self, kind: Any, logits: Tensor, before: Tensor, labels: Tensor, items: Tensor | float | None) -> Tensor:
        """Return the term of a batch from the logits of both, a mean over its labels or a sum over ``items`` labels."""
        # what counts for nothing has no label
        learned = labels >= 0
        if kind.name == "classifier":
            owner = kind.owner.to(logits.device)
            # groups of options are numbered as their tasks come
            own = owner[labels.clamp(min=0)]
            total = logits.sum() * 0
            for group in range(int(owner.max())):
                rows = learned & (own > group)
                total = total + self._divergence(*(one[rows][:, owner == group] for one in (logits, before)))
        else:
            # a decoder's logits are of the next token
            shift = int(kind.name == "causal")
            learned = learned[:, shift:]
            total = self._divergence(*(one[:, : one.shape[1] - shift][learned] for one in (logits, before)))
        return self.lam * total / (learned.sum().clamp(min=1) if items is None else items)

    def _divergence(self, logits: Tensor, before: Tensor) -> Tensor:
        ours, theirs = (torch.log_softmax(one.float() / self.temperature, -1) for one in (logits, before))
        return self.temperature**2 * F.kl_div(ours, theirs, reduction="sum", log_target=True)
