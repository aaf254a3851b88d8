"""Methods on adapters in the demo: PEFT's LoRA on every linear layer of its model, everything else frozen."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.optim import AdamW, Optimizer

from gsr_kernels.adapters.eblora import EBLoRA
from gsr_kernels.adapters.factors import find_factors
from gsr_kernels.adapters.merge_model import merge_and_unload
from gsr_kernels.adapters.riemannian import RiemannianAdamW
from gsr_kernels.continual.adapting import GRADIENT_ROWS, Adapting
from gsr_kernels.continual.library import Row
from gsr_kernels.continual.methods import MethodSettings
from gsr_kernels.continual.model import ByteDecoder
from gsr_kernels.continual.train import loss
from gsr_kernels.optim import attach

TARGETS = ["q", "k", "v", "o", "up", "down"]
# rows at a time where EBLoRA begins
GRADIENT_BATCH = 32


class Learner:
    """One method at work.

    Args:
        model: its layers are given adapters in place.
        settings: adapter_lr, adapter_rank, rho; the scaling is 1.
        adapting: the method.
    """

    def __init__(self, model: ByteDecoder, settings: MethodSettings, adapting: Adapting) -> None:
        self._model, self._settings, self._adapting = model, settings, adapting
        rank = settings.adapter_rank
        self._lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS)
        self._names: list[str] = []
        self._peft: Any = None
        self._eblora = EBLoRA()
        self._handle: Any = None

    def start_task(self, rows: Sequence[Row]) -> Optimizer:
        """What trains the next task, of which these are the rows."""
        if self._adapting.balanced:
            return self._balanced(rows)
        if self._adapting.own or not self._names:
            self._add(f"task{len(self._names) + 1}")
        factors = find_factors(self._model, self._names[-1])
        optimizer = AdamW([factor for one in factors for factor in (one.A, one.B)], lr=self._settings.adapter_lr)
        held = self._adapting.held(self._model, self._settings)
        if held is not None:
            attach(self._model, optimizer, held)
        return optimizer

    def scored(self) -> ByteDecoder:
        """A model without adapters that computes what the method has learned so far."""
        whole: Any = merge_and_unload(copy.deepcopy(self._peft), self._names, self._adapting.how)
        return whole

    def _balanced(self, rows: Sequence[Row]) -> Optimizer:
        """Merges the adapter of the task before; the new one begins with the gradient of some of the rows."""
        if self._names:
            self._handle.finish_task()
            merge_and_unload(self._peft, self._names, self._adapting.how)
            self._names = []
        self._add("task")
        some = rows[:GRADIENT_ROWS]
        batches = [some[start : start + GRADIENT_BATCH] for start in range(0, len(some), GRADIENT_BATCH)]
        scale = (self._model.config.width / self._settings.adapter_rank) ** 0.5
        optimizer = RiemannianAdamW(find_factors(self._model), lr=self._settings.adapter_lr, scale=scale)
        self._handle = attach(self._model, optimizer, self._eblora)
        self._handle.start_task(batches, loss)
        return optimizer

    def _add(self, name: str) -> None:
        # a generator of its own: what training draws stays the same
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(len(self._names))
            if self._names:
                self._peft.add_adapter(name, self._lora)
            else:
                self._peft = get_peft_model(self._model, self._lora, adapter_name=name)
        self._names.append(name)
        self._peft.base_model.set_adapter(self._names)
        for parameter_name, parameter in self._peft.named_parameters():
            parameter.requires_grad_(f".{name}." in parameter_name)
