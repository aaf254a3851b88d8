"""Measures of what a method does to one gradient: tensors on the weight's device, read when asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.methods.projections import operands
from gsr_kernels.reference import FLOOR, project, skew
from gsr_kernels.weight import Weight

Measures = dict[str, Tensor]

# elements that are widened at a time on a CPU
PART = 2**16
COUNTS = ("skipped_nonfinite", "inactive_directions")


def measure_before(G: Tensor, basis: SpectralBasis) -> Measures:
    """Measure gradients ``[.., d1, d2]`` as they came, summed: where their energy is, signs of the diagonal of N."""
    wide = torch.promote_types(torch.promote_types(G.dtype, basis.U.dtype), torch.float32)
    N = project(G.to(wide), basis.U.to(wide), basis.Vh.to(wide))
    g = N.diagonal(dim1=-2, dim2=-1)
    energy = _energy(G)
    # a zero gradient has no shares: 0, not NaN
    share = torch.where(energy > 0, 1 / energy, 0)
    return {
        "energy": energy,
        "outside_span": ((energy - _energy(N)) * share).clamp_min(0),
        "on_diagonal": _energy(g) * share,
        "positive": (g > 0).sum(),
        "negative": (g < 0).sum(),
    }


def measure_after(G: Tensor, before: Measures) -> Measures:
    """Return the finished record, with ``norm_ratio`` = ‖G'‖ / ‖G‖ in place of the energy."""
    energy = before.pop("energy")
    return {**before, "norm_ratio": torch.where(energy > 0, _energy(G) / energy, 1).sqrt()}


def summarize(skipped: Tensor, S: Tensor, measures: Measures) -> dict[str, float]:
    """Return the entry of one weight in ``handle.metrics()``."""
    active = (FLOOR * S.amax(-1, keepdim=True) < S).sum()
    values = {"skipped_nonfinite": skipped, "inactive_directions": S.numel() - active, **measures}
    return {key: value.item() for key, value in values.items()}


def overview(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return ``handle.scalars()``."""
    values: dict[str, float] = {}
    for key in dict.fromkeys(key for record in records for key in record):
        found = [record[key] for record in records if key in record]
        values[f"gsr/{key}"] = sum(found) if key in COUNTS else sum(found) / len(found)
    return values


@torch.no_grad()
def directions(weight: Weight, G: Tensor) -> dict[str, Tensor]:
    """Return ``handle.directions()`` for a gradient; nothing is changed."""
    basis = weight.basis.to(G.device)
    split = basis.split(G)
    wide, U, Vh = operands(split, basis)
    N = project(wide, U, Vh)
    H, K = skew(N, basis.S.to(N.dtype))

    rescaled = split.clone()
    state = {key: value.clone() for key, value in weight.state.items()}
    weight.method.transform([(rescaled, basis.split(weight.held), basis, state)])
    return {
        "sigma": basis.S,
        "g": N.diagonal(dim1=-2, dim2=-1),
        "rescaled": project(rescaled.to(wide.dtype), U, Vh).diagonal(dim1=-2, dim2=-1),
        "turn_left": torch.linalg.vector_norm(H, dim=-1),
        "turn_right": torch.linalg.vector_norm(K, dim=-1),
    }


def _energy(tensor: Tensor) -> Tensor:
    # in float64: squares of 1e25 overflow float32. On a CPU in parts: glibc would leave a hole of the size of a whole
    # copy behind each result that is kept
    parts = tensor.reshape(-1).split(PART) if tensor.device.type == "cpu" else (tensor,)
    return torch.stack([torch.linalg.vector_norm(part, dtype=torch.float64).square() for part in parts]).sum()
