"""Elastic weight consolidation, the classical baseline: weights are held where earlier tasks needed them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gsr_kernels.checks import check_number
from gsr_kernels.methods.base import wide
from gsr_kernels.methods.on_model import BoundMethod, Loss, ModelMethod, mean_over_batches


class EWC(ModelMethod):
    """Penalty ``lam / 2 Σ_t Σ_i F_ti (θ_i − θ*_ti)²`` over earlier tasks t (Kirkpatrick et al. 2017).

    It holds ALL trained parameters θ_i, not matrices alone. F is the diagonal of the empirical Fisher matrix, θ* the
    parameters at the end of a task. Twice the model's size is kept, however many tasks there are: the squares around
    several θ* have the gradient of one around their mean, weighted by F.

        handle = attach(model, optimizer, EWC(lam=1e3))
        for task in tasks:
            train(model, optimizer, task)
            handle.finish_task(task.batches, loss=lambda model, batch: …)

    ``finish_task`` holds the parameters as they are then, as firmly as the loss, a mean negative log-likelihood,
    depends on them. F is the mean over batches of the squared gradient: of single rows where a batch is one row.

    Args:
        lam: how firmly, at least 0.

    Raises ValueError where lam is out of range; in ``attach`` where no parameter of the model requires gradients.
    """

    remembers = ("fisher", "anchors")

    def __init__(self, lam: float) -> None:
        check_number("lam", lam, 0)
        self.lam = lam
        self.fisher: dict[str, Tensor] = {}
        self.anchors: dict[str, Tensor] = {}

    def bind(self, model: nn.Module) -> BoundMethod:
        return _BoundEWC(self, model)

    def __repr__(self) -> str:
        return f"EWC(lam={self.lam:g})"


class _BoundEWC(BoundMethod):
    name = "EWC"
    partly = True

    def __init__(self, method: EWC, model: nn.Module) -> None:
        self._method, self._model = method, model
        self.parameters = list(self._trained().values())
        if not self.parameters:
            raise ValueError("model has no parameter that requires gradients: there is nothing to hold")

    def act(self, optimizer: Optimizer) -> None:
        scale, method = getattr(optimizer, "grad_scale", None), self._method
        for name, parameter in self._trained().items():
            if parameter.grad is not None and name in method.fisher:
                pull = method.lam * method.fisher[name] * (wide(parameter) - method.anchors[name])
                parameter.grad += pull if scale is None else pull * scale

    def finish_task(self, batches: Iterable[Any] | None, loss: Loss | None) -> None:
        if batches is None or loss is None:
            raise ValueError("EWC: finish_task() needs batches of the task that was learned, and its loss")
        parameters = self._trained()
        fisher = mean_over_batches(self._model, parameters, batches, loss, torch.square)
        kept = self._method
        for name, mean in fisher.items():
            anchor = wide(parameters[name].detach())
            if name in kept.fisher:
                total = kept.fisher[name] + mean
                share = torch.where(total > 0, mean / total, 1)
                mean, anchor = total, torch.lerp(kept.anchors[name], anchor, share)
            kept.fisher[name], kept.anchors[name] = mean, anchor.clone()

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self._model.named_parameters() if value.requires_grad}
