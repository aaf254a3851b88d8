"""Statistics of a model on a few batches: how far each block turns its input, and how large a layer's inputs are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsr_kernels.checks import check_kind, check_number, check_pattern

# an input feature that is never used counts as this share of the largest
FLOOR = 1e-3


def layer_importance(model: nn.Module, batches: Iterable[Any], layers: str | None = None) -> dict[str, float]:
    """Return the importance of every matrix, by its parameter's name: that of the block that holds it.

    It is the mean cosine over tokens of the residual stream before and after the block ("Sculpting Subspaces"), padding
    counted as every other token. Matrices in no block have the mean of the blocks. The values are raw:
    ``adaptive_shares`` scales them to mean 1.

    Args:
        model: runs without gradients in the mode that it is in: call ``eval()`` first where it has dropout.
        batches: what the model is called with, each a mapping by keyword, a tuple of arguments, or one.
        layers: regular expression of the blocks' whole names. None: numbered modules (``model.layers.3``, ``h.0``,
            ``encoder.block.2``), as those of transformers' decoders, encoders and encoder–decoders, the outermost whose
            output has the shape of their input.

    Raises ValueError where batches is empty, or where no such block ran.
    """
    check_kind(nn.Module, "a torch.nn.Module", model=model)
    totals: dict[str, tuple[Tensor, int]] = {}

    def see(name: str, x: Any, y: Any) -> None:
        y = y[0] if isinstance(y, tuple | list) else y
        if isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape and x.is_floating_point():
            cosine = F.cosine_similarity(x.float(), y.float(), dim=-1)
            total, count = totals.get(name, (0, 0))
            totals[name] = cosine.sum() + total, cosine.numel() + count

    blocks = check_pattern("layers", r"(.*\.)?\d+" if layers is None else layers)
    _watch(model, batches, {name: module for name, module in model.named_modules() if blocks.fullmatch(name)}, see)
    if not totals:
        what = "numbered module" if layers is None else f"module that layers={layers!r} matches"
        raise ValueError(
            f"no {what} of the model ran with an output of its input's shape: name its blocks by layers=, or give "
            "OSF(protect=) a share"
        )
    own = {name: (total / count).item() for name, (total, count) in totals.items()}
    mean = sum(own.values()) / len(own)

    def of_block(name: str) -> float:
        ends = [place for place, sign in enumerate(name) if sign == "."]
        return next((own[name[:end]] for end in ends if name[:end] in own), mean)

    return {name: of_block(name) for name, parameter in model.named_parameters() if parameter.ndim > 1}


def input_scales(model: nn.Module, batches: Iterable[Any], alpha: float = 0.5) -> dict[str, Tensor]:
    """Return the size of each input feature, ``[d_in]`` of mean 1, of each nn.Linear that ran, by its weight's name.

    ``(mean |x_j|)^alpha`` over all tokens, as ASVD scales weights; a feature under 1e-3 of the largest counts as that.

    Args:
        model, batches: as in ``layer_importance``.
        alpha: how much sizes differ; 0: all are 1.

    Raises ValueError where batches is empty, where no nn.Linear ran, or where one saw NaN or Inf.
    """
    check_kind(nn.Module, "a torch.nn.Module", model=model)
    check_number("alpha", alpha, 0)
    totals: dict[str, Tensor] = {}

    def see(name: str, x: Tensor, y: Tensor) -> None:
        size = x.reshape(-1, x.shape[-1]).abs().float().sum(0)
        totals[name] = totals[name] + size if name in totals else size

    linear = {
        f"{name}.weight" if name else "weight": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    _watch(model, batches, linear, see)
    if not totals:
        raise ValueError(
            "no linear layer of the model ran on batches: scales are those of nn.Linear, not of Conv1D, "
            "nn.MultiheadAttention or packed experts"
        )
    scales = {}
    for name, total in totals.items():
        if not total.isfinite().all():
            raise ValueError(f"the inputs of {name} hold NaN or Inf")
        # a layer whose inputs were all zero has no scale of its own
        size = torch.where(total.max() > 0, total.clamp_min(FLOOR * total.max()), 1) ** alpha
        scales[name] = size / size.mean()
    return scales


@torch.no_grad()
def _watch(
    model: nn.Module, batches: Iterable[Any], modules: Mapping[str, nn.Module], see: Callable[[str, Any, Any], None]
) -> None:
    """Call ``see(name, first input, output)`` whenever one of the modules runs."""
    check_kind(Iterable, "batches of what the model is called with", batches=batches)

    def watcher(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs, y: see(name, next(iter((*args, *kwargs.values())), None), y)

    hooks = [module.register_forward_hook(watcher(name), with_kwargs=True) for name, module in modules.items()]
    ran = False
    try:
        for batch in batches:
            ran = True
            if isinstance(batch, Mapping):
                model(**batch)
            elif isinstance(batch, tuple | list):
                model(*batch)
            else:
                model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not ran:
        raise ValueError("batches is empty: give a few batches of the data that the model should keep")
