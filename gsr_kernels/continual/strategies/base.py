"""Base of the strategies: what is done around the Trainer of every task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from gsr_kernels.continual.kinds import Kind


class Strategy(ABC):
    """Strategy: ``open`` once, then for every task ``begin``, ``prepare``, ``save`` and ``whole``, in this order.

    ``model``: what the Trainer trains, None before ``open``. ``lr``: the rate at which.
    """

    model: Any = None
    lr: float

    @abstractmethod
    def open(self, folder: Path | None) -> None:
        """Load the model as ``save`` wrote it after a task, or as it is before any."""

    @abstractmethod
    def begin(self) -> None:
        """Begin a task."""

    @abstractmethod
    def prepare(self, trainer: Trainer, folder: Path) -> None:
        """Ready the Trainer, also one that has nothing left to do but to load its last checkpoint.

        What is put into the folder is there when the task is resumed.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Have the first rank write what ``open`` reads; all ranks call it."""

    @abstractmethod
    def whole(self) -> Any:
        """Return a model that computes what has been learned."""


def batch_loss(kind: Kind, trainer: Trainer, items: float | None = None) -> Callable[[Any, Any], Tensor]:
    """Return the loss of a model on rows, as the Trainer computes it.

    Args:
        items: labels that the sum over the rows is divided by; None: those of the rows.
    """
    settings: Any = trainer.args

    def loss(model: Any, rows: Any) -> Tensor:
        batch: Any = trainer.data_collator(rows)
        batch = batch.to(model.device)
        labels = batch.pop("labels")
        with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.bf16):
            return kind.loss(model)(model(**batch), labels, items)

    return loss
