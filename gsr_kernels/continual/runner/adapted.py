"""Methods on PEFT's adapters of a model that writes; its weights stay frozen."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import Trainer

from gsr_kernels.adapters.eblora import EBLoRA
from gsr_kernels.adapters.factors import find_factors
from gsr_kernels.adapters.merge_model import merge_and_unload
from gsr_kernels.adapters.riemannian import RiemannianAdamW
from gsr_kernels.continual.adapting import ADAPTING, GRADIENT_ROWS, Adapting
from gsr_kernels.continual.runner.kinds import IGNORED, Kind
from gsr_kernels.continual.runner.models import load
from gsr_kernels.continual.runner.ranks import led, rank, world
from gsr_kernels.continual.runner.settings import RunSettings
from gsr_kernels.continual.runner.way import Way
from gsr_kernels.integrations.transformers import attach_to
from gsr_kernels.optim import attach

PROTECTED = "protected.safetensors"


def adapted(kind: Kind, settings: RunSettings, name: str, seed: int) -> Way:
    """The way of the method of this name."""
    adapting = ADAPTING[name]
    return (Balanced if adapting.balanced else Adapted)(kind, settings, adapting, seed)


class Adapted(Way):
    """The adapters are kept beside the model.

    ``settings.method`` has their rank and rate, their scaling is 1, their places are PEFT's own choice for the
    architecture, which are query and value.
    """

    def __init__(self, kind: Kind, settings: RunSettings, adapting: Adapting, seed: int) -> None:
        self.lr = settings.method.adapter_lr
        self._kind, self._settings, self._adapting, self._seed = kind, settings, adapting, seed
        self._peft: Any = None
        self._names: list[str] = []

    def open(self, folder: Path | None) -> None:
        """See Way.open: the adapters, on the model that the run began with."""
        self.model = load(self._kind, self._settings.model, self._settings.dtype, self._seed)
        found = sorted(path for path in folder.iterdir() if path.is_dir()) if folder is not None else []
        self._names = [path.name for path in found]
        for path in found:
            if path == found[0]:
                self._peft = PeftModel.from_pretrained(self.model, path, adapter_name=path.name)
            else:
                self._peft.load_adapter(path, adapter_name=path.name)

    def begin(self) -> None:
        """See Way.begin: a new adapter, where every task has one of its own; it alone is trained."""
        if self._adapting.own or not self._names:
            self._add(f"task-{len(self._names) + 1:03}")
        # all of PEFT's models keep the list of active adapters there
        self._peft.base_model.set_adapter(self._names)
        for name, parameter in self._peft.named_parameters():
            parameter.requires_grad_(f".{self._names[-1]}." in name)
        if self._settings.gradient_checkpointing:
            self.model.enable_input_require_grads()

    def prepare(self, trainer: Trainer, folder: Path) -> None:
        """See Way.prepare."""
        held = self._adapting.held(self.model, self._settings.method, self._settings.adapter_lam)
        if held is not None:
            attach_to(trainer, held)

    def save(self, folder: Path) -> None:
        """See Way.save: a folder an adapter, as PEFT writes them."""
        led(lambda: self._peft.save_pretrained(folder))

    def whole(self) -> Any:
        """See Way.whole: a copy with the adapters merged."""
        merged: Any = merge_and_unload(copy.deepcopy(self._peft), self._names, self._adapting.how)
        # as it came: the adapters had frozen it
        return merged.eval().requires_grad_()

    def _add(self, name: str) -> None:
        rank, dropout = self._settings.method.adapter_rank, self._settings.adapter_dropout
        config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=dropout)
        # a generator of its own: what training draws stays the same
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed + len(self._names))
            if self._names:
                self._peft.add_adapter(name, config)
            else:
                self._peft = get_peft_model(self.model, config, adapter_name=name)
        self._names.append(name)


class Balanced(Adapted):
    """EBLoRA: an adapter is merged when its task ends; the model is kept whole, with the inputs that are protected."""

    def open(self, folder: Path | None) -> None:
        """See Way.open."""
        self.model = load(self._kind, folder or self._settings.model, self._settings.dtype, self._seed)
        self._handle: Any = None
        self._eblora = EBLoRA() if folder is None else EBLoRA.load(folder / PROTECTED)

    def prepare(self, trainer: Trainer, folder: Path) -> None:
        """See Way.prepare: the adapter begins with the gradient of rows that the Trainer's seed chooses.

        It is the mean over all labels of these rows, of which each rank takes its share.

        A task that is resumed takes the same gradient again, since what is protected after it follows from that.
        """
        settings: Any = trainer.args
        turns: Any = trainer.train_dataset
        rows = random.Random(settings.seed).sample(turns.rows, min(len(turns.rows), GRADIENT_ROWS))
        size = settings.per_device_train_batch_size
        parts = [
            [share[start : start + size] for start in range(0, len(share), size)]
            for share in (rows[each :: world()] for each in range(world()))
        ]
        labels = sum(label != IGNORED for row in rows for label in row["labels"])
        mean, items = self._kind.loss(self.model), labels / sum(map(len, parts))

        def loss(model: Any, part: Any) -> Tensor:
            batch: Any = trainer.data_collator(part)
            batch = batch.to(model.device)
            labels = batch.pop("labels")
            with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.bf16):
                return mean(model(**batch), labels, items)

        adapter_rank = self._settings.method.adapter_rank
        factors = find_factors(self.model.train(), self._names[-1])
        width = factors[0].A.shape[1]
        trainer.optimizer = RiemannianAdamW(
            factors,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            scale=(width / adapter_rank) ** 0.5,
        )
        self._handle = attach(self.model, trainer.optimizer, self._eblora)
        self._handle.start_task(parts[rank()], loss)

    def save(self, folder: Path) -> None:
        """See Way.save: with the tokenizer, so that the folder is complete."""
        model = self.whole()

        def write() -> None:
            model.save_pretrained(folder)
            self._kind.tokenizer.save_pretrained(folder)
            self._eblora.save(folder / PROTECTED)

        led(write)

    def whole(self) -> Any:
        """See Way.whole: the task is over, and its adapter a part of the model."""
        if self._names:
            self._handle.finish_task()
            self.model = merge_and_unload(self._peft, self._names, self._adapting.how).eval().requires_grad_()
            self._names = []
        return self.model
