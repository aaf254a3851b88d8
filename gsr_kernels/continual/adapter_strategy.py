"""Strategies on PEFT's adapters of a model that writes; its weights stay frozen."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Trainer

from gsr_kernels.adapters.factors import find_factors
from gsr_kernels.adapters.merge_model import merge_and_unload
from gsr_kernels.adapters.riemannian import RiemannianAdamW
from gsr_kernels.continual.kinds import IGNORED
from gsr_kernels.continual.methods import GRADIENT_ROWS, AdapterMethod
from gsr_kernels.continual.models import lora_config
from gsr_kernels.continual.ranks import on_rank0, rank, world
from gsr_kernels.continual.strategy import Strategy, batch_loss
from gsr_kernels.integrations.transformers import attach_to
from gsr_kernels.optim import attach

PROTECTED = "protected.safetensors"


@dataclass
class Adapted(Strategy):
    """Strategy that keeps the adapters beside the model."""

    _peft: Any = field(default=None, init=False)
    _names: list[str] = field(default_factory=list, init=False)

    @property
    def method(self) -> AdapterMethod:
        """Return the method on adapters."""
        method = self.chosen.method
        assert isinstance(method, AdapterMethod)
        return method

    @property
    def lr(self) -> float:
        """See Strategy.lr."""
        return self.settings.adapter_lr

    def open(self, folder: Path | None) -> None:
        """See Strategy.open: the adapters, on the model that the run began with."""
        super().open(None)
        found = sorted(path for path in folder.iterdir() if path.is_dir()) if folder is not None else []
        self._names = [path.name for path in found]
        for path in found:
            if path == found[0]:
                self._peft = PeftModel.from_pretrained(self.model, path, adapter_name=path.name)
            else:
                self._peft.load_adapter(path, adapter_name=path.name)

    def begin(self) -> None:
        """See Strategy.begin: a new adapter, where every task has one of its own; it alone is trained."""
        if self.method.own or not self._names:
            config, name = lora_config(self.settings), f"task-{len(self._names) + 1:03}"
            # a generator of its own: what training draws stays the same
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed + len(self._names))
                if self._names:
                    self._peft.add_adapter(name, config)
                else:
                    self._peft = get_peft_model(self.model, config, adapter_name=name)
            self._names.append(name)
        # all of PEFT's models keep the list of active adapters there
        self._peft.base_model.set_adapter(self._names)
        for name, parameter in self._peft.named_parameters():
            parameter.requires_grad_(f".{self._names[-1]}." in name)
        if self.settings.gradient_checkpointing:
            self.model.enable_input_require_grads()

    def prepare(self, trainer: Trainer, folder: Path) -> None:
        """See Strategy.prepare."""
        # beside the first adapter of many there is none that a term could hold it by
        if self.method.makes and not (self.method.own and len(self._names) < 2):
            attach_to(trainer, self.chosen.make())

    def save(self, folder: Path) -> None:
        """See Strategy.save: a folder an adapter, as PEFT writes them."""
        on_rank0(lambda: self._peft.save_pretrained(folder))

    def whole(self) -> Any:
        """See Strategy.whole: a copy with the adapters merged."""
        return self._merged(copy.deepcopy(self._peft))

    def _merged(self, adapted: PeftModel) -> Any:
        merged: Any = merge_and_unload(adapted, self._names, self.method.how)
        # as it came: the adapters had frozen it
        return merged.eval().requires_grad_()


class Balanced(Adapted):
    """EBLoRA: an adapter is merged when its task ends; the model is kept whole, with the inputs that are protected."""

    def open(self, folder: Path | None) -> None:
        """See Strategy.open."""
        Strategy.open(self, folder)
        self._handle: Any = None
        [self._eblora] = self.chosen.make()
        if folder is not None:
            self._eblora.load_state_dict(load_file(folder / PROTECTED))

    def prepare(self, trainer: Trainer, folder: Path) -> None:
        """See Strategy.prepare: the adapter begins with the mean gradient of rows that the Trainer's seed chooses."""
        # a task that is resumed takes the same again: what is protected after it follows from that
        settings: Any = trainer.args
        dataset: Any = trainer.train_dataset
        rows = random.Random(settings.seed).sample(dataset.rows, min(len(dataset.rows), GRADIENT_ROWS))
        size = settings.per_device_train_batch_size
        parts = [
            [share[start : start + size] for start in range(0, len(share), size)]
            for share in (rows[each :: world()] for each in range(world()))
        ]
        labels = sum(label != IGNORED for row in rows for label in row["labels"])
        factors = find_factors(self.model.train(), self._names[-1])
        width = factors[0].A.shape[1]
        trainer.optimizer = RiemannianAdamW(
            factors,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            scale=(width / self.settings.adapter_rank) ** 0.5,
        )
        self._handle = attach(self.model, trainer.optimizer, self._eblora)
        self._handle.start_task(parts[rank()], batch_loss(self.kind, trainer, labels / sum(map(len, parts))))

    def save(self, folder: Path) -> None:
        """See Strategy.save."""
        self.whole()
        Strategy.save(self, folder)
        on_rank0(lambda: save_file(self._eblora.state_dict(), folder / PROTECTED))

    def whole(self) -> Any:
        """See Strategy.whole: the task is over, and its adapter a part of the model."""
        if self._names:
            self._handle.finish_task()
            self.model = self._merged(self._peft)
            self._names = []
        return self.model
