"""The methods beside GSR as their equations are written, in the dtype given: judged in float64."""

import torch
from torch import Tensor

from gsr_kernels import reference


def block(G: Tensor, U: Tensor, Vh: Tensor) -> Tensor:
    """``U Uᵀ G V Vᵀ``."""
    return U @ U.mT @ G @ Vh.mT @ Vh


def both_sides(G: Tensor, U: Tensor, Vh: Tensor) -> Tensor:
    """``(I − U Uᵀ) G (I − V Vᵀ)``."""
    d1, d2 = G.shape[-2:]
    return (torch.eye(d1, dtype=G.dtype) - U @ U.mT) @ G @ (torch.eye(d2, dtype=G.dtype) - Vh.mT @ Vh)


def gsr_full(G: Tensor, U: Tensor, S: Tensor, Vh: Tensor, p: float, out_of_span: str) -> Tensor:
    """``U N' Vh`` with ``N'_ij = c w_i w_j N_ij``; keep adds ``G − U N Vh``."""
    N = reference.project(G, U, Vh)
    sigma = torch.maximum(S, 1e-3 * S.amax(-1, keepdim=True))
    w = torch.where(sigma > 0, (S.mean(-1, keepdim=True) / sigma) ** (p / 2), 1)
    rescaled = N * w.unsqueeze(-1) * w.unsqueeze(-2)
    before, after = (torch.linalg.matrix_norm(one, keepdim=True) for one in (N, rescaled))
    rescaled = torch.where(after > 0, before / after, 0) * rescaled
    inside = U @ rescaled @ Vh
    return inside + G - block(G, U, Vh) if out_of_span == "keep" else inside


def psp(G: Tensor, U: Tensor, Vh: Tensor, trained: int, variant: str) -> Tensor:
    """The four projections of PSP; the last ``trained`` directions are minor."""
    protected = U.shape[-1] - trained
    if variant in ("minor_block", "middle"):
        first = protected if variant == "minor_block" else protected // 2
        kept = range(first, first + trained)
        return block(G, U[..., kept], Vh[..., kept, :])
    high = U[..., :protected], Vh[..., :protected, :]
    return G - block(G, *high) if variant == "remove_block" else both_sides(G, *high)


def sr_penalty(W: Tensor, k: float, target: float | Tensor) -> Tensor:
    """``Σ (σ_max^k − t^k)²``, through the decomposition, for autograd."""
    return (torch.linalg.svdvals(W)[..., 0] ** k - target**k).square().sum()


def data_aware(G: Tensor, W: Tensor, D: Tensor, rho: float) -> Tensor:
    """``G + U diag(δ) Vh D`` in the basis of W D, D a diagonal matrix."""
    U, S, Vh = torch.linalg.svd(W @ torch.diag(D), full_matrices=False)
    g = reference.project(G @ torch.diag(1 / D), U, Vh).diagonal(dim1=-2, dim2=-1)
    return G + U @ torch.diag_embed(reference.rescale(g, S, rho) - g) @ Vh @ torch.diag(D)
