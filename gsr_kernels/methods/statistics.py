"""Statistics of a model's linear layers on a few batches: how far each turns its input, and how large its inputs are.

A batch is what the model is called with: a mapping of keyword arguments, a tuple or list of arguments, or one argument.
The model runs without gradients in the mode that it is in: call ``model.eval()`` first where it has dropout.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# an input feature that is never used counts as this share of the largest
FLOOR = 1e-3


def layer_importance(model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
    """Return the mean cosine of a layer's input and output ("Sculpting Subspaces"), by the name of its weight.

    The cosine is measured at nn.Linear and Conv1D of equal input and output width. All other matrices of linear layers,
    attention and packed experts are given the mean of the layers that have one in the smallest enclosing module that
    holds any: a block's MLP that of the block's attention. Padding counts as every other token. The values are raw:
    ``adaptive_shares`` scales them to mean 1.

    Raises ValueError where batches is empty, or where no layer of equal widths ran.
    """
    cosines: dict[str, list[Tensor]] = defaultdict(list)

    def see(name: str, x: Tensor, y: Tensor) -> None:
        if x.shape == y.shape:
            cosines[name].append(F.cosine_similarity(x.float(), y.float(), dim=-1).flatten())

    _watch(model, batches, see, conv1d=True)
    if not cosines:
        raise ValueError("model has no linear layer of equal input and output width: give OSF(protect=) a share")
    own = {name: torch.cat(parts).mean().item() for name, parts in cosines.items()}
    return {name: own[name] if name in own else _of_block(name, own) for name in _matrices(model)}


def input_scales(model: nn.Module, batches: Iterable[Any], alpha: float = 0.5) -> dict[str, Tensor]:
    """Return the size of each input feature, ``[d_in]`` of mean 1, of each nn.Linear that ran, by its weight's name.

    ``(mean |x_j|)^alpha`` over all tokens, as ASVD scales weights; a feature under 1e-3 of the largest counts as that.

    Raises ValueError where batches is empty, where no nn.Linear ran, or where one saw NaN or Inf.
    """
    totals: dict[str, Tensor] = {}

    def see(name: str, x: Tensor, y: Tensor) -> None:
        size = x.reshape(-1, x.shape[-1]).abs().float().sum(0)
        totals[name] = totals[name] + size if name in totals else size

    _watch(model, batches, see, conv1d=False)
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
def _watch(model: nn.Module, batches: Iterable[Any], see: Callable[[str, Tensor, Tensor], None], conv1d: bool) -> None:
    """Call ``see(name of the weight, input, output)`` whenever an nn.Linear or a Conv1D runs."""

    def watcher(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs, y: see(name, args[0] if args else next(iter(kwargs.values())), y)

    hooks = [
        module.register_forward_hook(watcher(f"{prefix}.weight" if prefix else "weight"), with_kwargs=True)
        for prefix, module in model.named_modules()
        if isinstance(module, nn.Linear) or (conv1d and _is_conv1d(module))
    ]
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


def _is_conv1d(module: nn.Module) -> bool:
    """Recognise transformers' linear layer with a transposed weight, which methods do not import."""
    return type(module).__name__ == "Conv1D"


def _matrices(model: nn.Module) -> list[str]:
    return [
        f"{prefix}.{local}" if prefix else local
        for prefix, module in model.named_modules()
        for local, parameter in module.named_parameters(recurse=False)
        if (local == "weight" and (isinstance(module, nn.Linear) or _is_conv1d(module)))
        or (local == "in_proj_weight" and isinstance(module, nn.MultiheadAttention))
        or (parameter.ndim == 3 and "experts" in f"{prefix}.{local}")
    ]


def _of_block(name: str, own: Mapping[str, float]) -> float:
    block = name
    while True:
        # ends at the whole model, which holds all of them
        block = block.rpartition(".")[0]
        inside = [value for other, value in own.items() if not block or other.startswith(f"{block}.")]
        if inside:
            return sum(inside) / len(inside)
