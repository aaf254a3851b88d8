"""What a way of learning does around the Trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from transformers import Trainer


class Way(ABC):
    """``open`` once, then for every task ``begin``, ``prepare``, ``save`` and ``whole``, in this order.

    ``model``: what the Trainer trains, None before ``open``. ``lr``: the rate at which.
    """

    model: Any = None
    lr: float

    @abstractmethod
    def open(self, folder: Path | None) -> None:
        """The model as ``save`` wrote it after a task, or as it is before any."""

    @abstractmethod
    def begin(self) -> None:
        """A task begins."""

    @abstractmethod
    def prepare(self, trainer: Trainer, folder: Path) -> None:
        """Before the Trainer trains, and where it has nothing left to do but to load its last checkpoint; what is put
        into the folder is there when the task is resumed.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Has the first rank write what ``open`` reads; all ranks call it."""

    @abstractmethod
    def whole(self) -> Any:
        """A model that computes what has been learned."""
