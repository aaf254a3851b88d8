"""Torch's fused AdamW where it needs care: wide copies of narrow weights, any strides, some matrices of a weight."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

# p, G, m, v of one parameter
Row = tuple[Tensor, Tensor, Tensor, Tensor]


def plain(row: Row) -> bool:
    """Return whether torch's fused step takes a parameter as it is: it walks memory, not strides."""
    p, G, m, v = row
    return p.dtype == m.dtype and p.stride() == G.stride() == m.stride() == v.stride()


def settings_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of torch's fused step for a parameter group."""
    settings = {key: group[key] for key in ("lr", "weight_decay", "eps", "maximize", "capturable", "amsgrad")}
    return {**settings, **dict(zip(("beta1", "beta2"), group["betas"])), "fused": True}


def move(
    row: Row,
    step: Tensor,
    group: Mapping[str, Any],
    master: Tensor | None = None,
    matrices: tuple[Callable[[Tensor], Tensor], Tensor] | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Update one parameter of any strides by AdamW, by way of its ``master`` if it has one.

    ``matrices``: how it is split, ``[.., d1, d2]``, and which to move, ``[..]``; the step counts where any has moved.
    """
    p, G, m, v = row
    wide = p if master is None else master
    settings = {**settings_of(group), "grad_scale": grad_scale}
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
    """Update tensors of one layout, dense and in the dtype of the moments, or on copies that are, written back."""
    p, G, m, v = row
    W, gradient = p.to(m.dtype).contiguous(), G.to(m.dtype).contiguous()
    first, second = m.contiguous(), v.contiguous()
    adamw([W], [gradient], [first], [second], [], [step], found_inf=found_inf, **settings)
    for target, source in ((p, W), (m, first), (v, second)):
        if source is not target:
            target.copy_(source)
