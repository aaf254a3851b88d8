"""Torch's fused AdamW where it needs care: wide copies of narrow weights, any strides, some matrices of a weight."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from gsr_kernels.distributed.layout import local

# p, G, m, v of one parameter
Row = tuple[Tensor, Tensor, Tensor, Tensor]


def plain(row: Row) -> bool:
    """Whether torch's fused step takes a parameter as it lies: it walks memory, not strides."""
    p, G, m, v = row
    return p.dtype == m.dtype and p.stride() == G.stride() == m.stride() == v.stride()


def move(
    row: Row,
    step: Tensor,
    group: Mapping[str, Any],
    master: Tensor | None = None,
    matrices: tuple[Callable[[Tensor], Tensor], Tensor] | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """AdamW on one parameter of any strides, by way of its ``master`` if it has one.

    ``matrices``: how the parameter is split, ``[.., d1, d2]``, and which to move, ``[..]``; the step counts where any
    has moved.
    """
    p, G, m, v = (local(one) for one in row)
    wide = p if master is None else local(master)
    settings = {key: group[key] for key in ("lr", "weight_decay", "eps", "maximize", "capturable", "amsgrad")}
    settings |= dict(zip(("beta1", "beta2"), group["betas"]), fused=True, grad_scale=grad_scale)
    # not matrix by matrix where all move: torch's fused CPU step rounds the end of a tensor differently
    if matrices is not None and wide.device.type == "cpu" and matrices[1].all():
        matrices = None
    if matrices is None:
        _update((wide, G, m, v), step, found_inf, settings)
    else:
        split, finite = matrices
        skipped = (~finite).float()
        if found_inf is not None:
            skipped = torch.maximum(skipped, found_inf.to(skipped.device))
        parts = [split(one) for one in (wide, G, m, v)]
        after = []
        # by index: of leading dimensions flattened there may be no view
        for index in itertools.product(*map(range, finite.shape)):
            after.append(step.clone())
            W, gradient, first, second = (part[index] for part in parts)
            _update((W, gradient, first, second), after[-1], skipped[index], settings)
        # of experts on many ranks, one may hold none
        if after:
            step.copy_(torch.stack(after).amax())
    if wide is not p:
        p.copy_(wide)


def _update(row: Row, step: Tensor, found_inf: Tensor | None, settings: dict[str, Any]) -> None:
    """On tensors of one layout, dense and in the dtype of the moments, or on copies that are, written back."""
    p, G, m, v = row
    W, gradient = p.to(m.dtype).contiguous(), G.to(m.dtype).contiguous()
    first, second = m.contiguous(), v.contiguous()
    adamw([W], [gradient], [first], [second], [], [step], found_inf=found_inf, **settings)
    for target, source in ((p, W), (m, first), (v, second)):
        if source is not target:
            target.copy_(source)
