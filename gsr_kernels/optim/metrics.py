"""What a method did to one gradient, measured around it: tensors on the weight's device, read when asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.reference import project

Measures = dict[str, Tensor]


def measure_before(G: Tensor, basis: SpectralBasis) -> Measures:
    """Of the gradient as it came: its norm, and where its energy lies. ``G [.., d1, d2]``; batches are summed."""
    wide = torch.promote_types(G.dtype, torch.float32)
    G = G.to(wide)
    # a norm of 1e25 has a square beyond float32
    scale = G.abs().amax().clamp_min(torch.finfo(wide).tiny)
    N = project(G / scale, basis.U.to(wide), basis.Vh.to(wide))
    g = N.diagonal(dim1=-2, dim2=-1)
    energy = (G / scale).square().sum().clamp_min(torch.finfo(wide).tiny)
    return {
        "norm": energy.sqrt() * scale,
        "outside_span": (1 - N.square().sum() / energy).clamp_min(0),
        "on_diagonal": g.square().sum() / energy,
        "positive": (g > 0).sum(),
        "negative": (g < 0).sum(),
    }


def measure_after(G: Tensor, before: Measures) -> dict[str, float]:
    """The finished record: shares of energy in [0, 1], ‖G'‖/‖G‖, the count of each sign."""
    norm = torch.linalg.vector_norm(G, dtype=torch.float64) if G.device.type == "cpu" else torch.linalg.vector_norm(G)
    ratio = norm / before["norm"].clamp_min(torch.finfo(torch.float32).tiny)
    return {**before, "norm_ratio": ratio}
