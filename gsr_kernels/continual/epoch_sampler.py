"""Rows of each step of a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from gsr_kernels.continual.kinds import IGNORED


class EpochSampler(Dataset):
    """Rows in the order of the steps: all of them in each epoch, every time shuffled anew.

    An epoch ends with a step of as many rows as the others: what is lacking is filled with a row whose labels count
    for nothing. So a step is the same on any number of processes.

    Args:
        rows: as ``Kind.features`` gives them.
        batch: rows of a step.
        steps: of the task.
        seed: of the order.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], batch: int, steps: int, seed: int) -> None:
        self.rows = rows
        self._filling = _without_labels(min(rows, key=lambda row: len(row["input_ids"])))
        self._order: list[int | None] = []
        for epoch in range(steps):
            if len(self._order) < batch * steps:
                generator = torch.Generator().manual_seed(seed + epoch)
                self._order += torch.randperm(len(rows), generator=generator).tolist()
                self._order += [None] * (-len(self._order) % batch)
        del self._order[batch * steps :]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._order[index]
        return self._filling if row is None else self.rows[row]


def _without_labels(row: dict[str, Any]) -> dict[str, Any]:
    labels = row["labels"]
    return {**row, "labels": [IGNORED] * len(labels) if isinstance(labels, list) else IGNORED}
