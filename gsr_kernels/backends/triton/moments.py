"""Moments and masters that AdamW keeps of the weights of a step, and its scalars in device memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gsr_kernels.backends.triton import adamw_kernels as kernels
from gsr_kernels.backends.triton.configurations import in_capture
from gsr_kernels.backends.triton.forms import Update


@dataclass(frozen=True, eq=False)
class Moments:
    """The state of one weight: all of them as it lies in memory, its rows contiguous.

    ``weight`` is what AdamW moves, the parameter or its wide master; ``copy`` the parameter under a master. ``step`` is
    float32, ``skipped`` int64, both one number on the device; ``group`` is the row of the settings.
    """

    weight: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    skipped: Tensor
    group: int
    copy: Tensor | None = None

    @cached_property
    def update(self) -> Update:
        """The dtypes, which a plan is built for."""
        return Update(self.weight.dtype, self.exp_avg.dtype, None if self.copy is None else self.copy.dtype)


class Settings:
    """lr, betas, eps and weight_decay of every parameter group, and what a gradient scaler says, on one device.

    ``set`` touches what has changed, by kernels that carry the number: there is no buffer on the host that a captured
    graph could read later. A tensor on the device is copied at each step, in a captured graph at each replay.

    Attributes:
        given, scaling: ``[groups, 5]`` float64 and ``[2]`` float32, see ``adamw_kernels``.
    """

    def __init__(self, groups: int, device: torch.device) -> None:
        self.given = torch.zeros(groups, kernels.GIVEN.value, dtype=torch.float64, device=device)
        self.scaling = torch.tensor([1.0, 0.0], dtype=torch.float32, device=device)
        self._known: dict[tuple[int, ...], float] = {}

    def set(self, groups: Sequence[Mapping[str, Any]], grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Brings in the settings of ``optimizer.param_groups`` and of this step's scaler."""
        for row, group in enumerate(groups):
            beta1, beta2 = group["betas"]
            for column, value in enumerate((group["lr"], beta1, beta2, group["eps"], group["weight_decay"])):
                self._put(self.given, (row, column), value)
        self._put(self.scaling, (kernels.SCALE.value,), 1.0 if grad_scale is None else grad_scale)
        self._put(self.scaling, (kernels.FOUND_INF.value,), 0.0 if found_inf is None else found_inf)

    def _put(self, table: Tensor, place: tuple[int, ...], value: float | Tensor) -> None:
        if isinstance(value, Tensor) and (table.is_cpu or not value.is_cpu):
            self._known.pop(place, None)
            table[place].copy_(value.view(()))
            return
        number = float(value)
        if self._known.get(place) != number:
            table[place].fill_(number)
            self._known[place] = number
            if in_capture(table.device):
                # recorded and not done: each replay will do it
                del self._known[place]
