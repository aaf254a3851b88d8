"""Methods on the weights themselves: a method of ``attach``, or nothing, between the gradients and the optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer

from gsr_kernels.continual.runner.kinds import Kind
from gsr_kernels.continual.runner.models import load
from gsr_kernels.continual.runner.ranks import led
from gsr_kernels.continual.runner.settings import RunSettings
from gsr_kernels.continual.runner.way import Way
from gsr_kernels.integrations.transformers import attach_to
from gsr_kernels.methods import Method

# a file, and a directory of the parts of weights that are cut
BASES, PARTS = "bases.safetensors", "bases"


class Dense(Way):
    """The model itself is trained and kept; where FSDP2 has cut it, ``open`` what was saved to have it whole again.

    Args:
        kind: of the model.
        settings: of the run.
        method: None is plain fine-tuning.
        seed: of what the model's checkpoint lacks.
    """

    def __init__(self, kind: Kind, settings: RunSettings, method: Method | None, seed: int) -> None:
        self.lr = settings.lr
        self._kind, self._settings, self._method, self._seed = kind, settings, method, seed

    def open(self, folder: Path | None) -> None:
        """See Way.open."""
        self.model = load(self._kind, folder or self._settings.model, self._settings.dtype, self._seed)

    def begin(self) -> None:
        """See Way.begin: the bases are taken when its Trainer makes its optimizer."""

    def prepare(self, trainer: Trainer, folder: Path) -> None:
        """See Way.prepare: attaches the method, with its bases in the folder."""
        if self._method is not None:
            folder.mkdir(parents=True, exist_ok=True)
            rank = self._settings.method.rank
            attach_to(trainer, method=self._method, rank=rank, bases=folder / (PARTS if self._settings.fsdp else BASES))

    def save(self, folder: Path) -> None:
        """See Way.save: with the tokenizer, so that the folder is complete."""
        model = self.model
        cut = isinstance(model, FSDPModule)
        # in the host memory of the first rank
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        gathered = get_model_state_dict(model, options=options) if cut else None

        def write() -> None:
            model.save_pretrained(folder, state_dict=gathered)
            self._kind.tokenizer.save_pretrained(folder)

        led(write)

    def whole(self) -> Any:
        """See Way.whole."""
        return self.model
