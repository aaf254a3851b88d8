"""Strategies on the weights themselves: a method of ``attach``, or nothing, between gradients and optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer

from gsr_kernels.continual.kinds import Kind
from gsr_kernels.continual.methods import EWC_LAM, EWC_ROWS
from gsr_kernels.continual.models import load
from gsr_kernels.continual.ranks import on_rank0
from gsr_kernels.continual.settings import RunSettings
from gsr_kernels.continual.strategies.base import Strategy, batch_loss
from gsr_kernels.integrations.transformers import attach_to
from gsr_kernels.methods import EWC, Method

# a file, and a directory of the shards
BASES, SHARDS = "bases.safetensors", "bases"
CONSOLIDATED = "ewc.safetensors"


class Dense(Strategy):
    """Strategy that trains and keeps the model itself; where FSDP2 has sharded it, ``open`` makes it whole again.

    Args:
        kind: of the model.
        settings: of the run.
        start: the model before all tasks.
        method: None is plain fine-tuning.
        seed: of what the model's checkpoint lacks.
    """

    def __init__(self, kind: Kind, settings: RunSettings, start: str | Path, method: Method | None, seed: int) -> None:
        self.lr = settings.lr
        self._kind, self._settings, self._start, self._method, self._seed = kind, settings, start, method, seed

    def open(self, folder: Path | None) -> None:
        """See Strategy.open."""
        self.model = load(self._kind, folder or self._start, self._settings.dtype, self._seed)

    def begin(self) -> None:
        """See Strategy.begin: the bases are taken when its Trainer makes its optimizer."""

    def prepare(self, trainer: Trainer, folder: Path) -> None:
        """See Strategy.prepare: attaches the method, with its bases in the folder."""
        if self._method is not None:
            folder.mkdir(parents=True, exist_ok=True)
            rank = self._settings.rank
            attach_to(
                trainer, method=self._method, rank=rank, bases=folder / (SHARDS if self._settings.fsdp else BASES)
            )

    def save(self, folder: Path) -> None:
        """See Strategy.save: with the tokenizer, so that the folder is complete."""
        model = self.model
        sharded = isinstance(model, FSDPModule)
        # in the host memory of the first rank
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        gathered = get_model_state_dict(model, options=options) if sharded else None

        def write() -> None:
            model.save_pretrained(folder, state_dict=gathered)
            self._kind.tokenizer.save_pretrained(folder)

        on_rank0(write)

    def whole(self) -> Any:
        """See Strategy.whole."""
        return self.model


class Consolidated(Dense):
    """EWC: the weights are held where earlier tasks needed them; what it holds is kept beside the model."""

    def open(self, folder: Path | None) -> None:
        """See Strategy.open."""
        super().open(folder)
        self._ewc = EWC(EWC_LAM)
        if folder is not None:
            self._ewc.load_state_dict(load_file(folder / CONSOLIDATED, device=str(self.model.device)))

    def prepare(self, trainer: Trainer, folder: Path) -> None:
        """See Strategy.prepare."""
        attach_to(trainer, self._ewc)
        rows: Any = trainer.train_dataset
        self._rows, self._loss = rows.rows[:EWC_ROWS], batch_loss(self._kind, trainer)

    def save(self, folder: Path) -> None:
        """See Strategy.save: the task is learned, and consolidated from its first rows."""
        self.model.eval()
        self._ewc.bind(self.model).finish_task([[row] for row in self._rows], self._loss)
        super().save(folder)
        on_rank0(lambda: save_file(self._ewc.state_dict(), folder / CONSOLIDATED))
