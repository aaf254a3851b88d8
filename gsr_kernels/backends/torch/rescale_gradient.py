"""Equations (2), (3), (7), (8) as two products: the skew matrices cancel, ``G' = U Uᵀ G V Vᵀ + U diag(δ) Vh``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gsr_kernels.backends.torch.products import add_product, product
from gsr_kernels.backends.torch.stages import rescale

if TYPE_CHECKING:
    from gsr_kernels.basis import SpectralBasis


def rescale_gradients(
    gradients: Sequence[Tensor],
    bases: Sequence[SpectralBasis],
    rho: float,
    out_of_span: Sequence[str],
    outs: Sequence[Tensor],
) -> list[Tensor]:
    """Call ``rescale_gradient`` on one weight after another; gradients and outs have the weights' own shapes."""
    return [
        rescale_gradient(basis.split(G), basis.U, basis.S, basis.Vh, rho, mode, basis.split(out))
        for G, basis, mode, out in zip(gradients, bases, out_of_span, outs)
    ]


def rescale_gradient(G: Tensor, U: Tensor, S: Tensor, Vh: Tensor, rho: float, out_of_span: str, out: Tensor) -> Tensor:
    """Write G' to ``out [.., d1, d2]``, which may be G, and return the diagonal ``g [.., k]`` that it found.

    Products and sums are in the wider dtype of G and U, at least float32 on a CPU. A matrix whose g is not finite
    (one NaN or Inf anywhere in G is enough) is copied as it came; no host synchronisation is needed to know.
    """
    if G.ndim > 3:
        parts = zip(G, U, S, Vh, out)
        return torch.stack([rescale_gradient(*part[:4], rho, out_of_span, part[4]) for part in parts])
    dtype = torch.promote_types(G.dtype, U.dtype)
    if G.device.type == "cpu":
        dtype = torch.promote_types(dtype, torch.float32)
    U, Vh = U.to(dtype), Vh.to(dtype)

    d1, d2, k = *G.shape[-2:], S.shape[-1]
    if out_of_span == "keep" or d1 == d2 == k:
        return _inside(G, U, S, Vh, rho, out)
    if k < min(d1, d2):
        return _through_core(G, U, S, Vh, rho, out)
    if d1 < d2:
        # a wide weight is a tall one transposed
        return _through_span(G.mT, Vh.mT, S, U.mT, rho, out.mT)
    return _through_span(G, U, S, Vh, rho, out)


def _inside(G: Tensor, U: Tensor, S: Tensor, Vh: Tensor, rho: float, out: Tensor) -> Tensor:
    """Write G + U diag(δ) Vh: all of G stays."""
    g = product(G.to(U.dtype), Vh.mT).mul_(U).sum(-2)
    delta, _ = _delta(g, S, rho)
    add_product(G, U * delta.unsqueeze(-2), Vh, out)
    return g


def _through_span(G: Tensor, U: Tensor, S: Tensor, Vh: Tensor, rho: float, out: Tensor) -> Tensor:
    """Write U (Uᵀ G + diag(δ) Vh), for a tall weight whose Vh is a whole square basis."""
    A = product(U.mT, G.to(U.dtype))
    # row sums of A ⊙ Vh as products of single rows, so that A ⊙ Vh is never stored
    g = (A.unsqueeze(-2) @ Vh.unsqueeze(-1)).squeeze(-1).squeeze(-1)
    delta, finite = _delta(g, S, rho)
    A.addcmul_(delta.unsqueeze(-1), Vh)
    return _replace(G, U, A, g, finite, out)


def _through_core(G: Tensor, U: Tensor, S: Tensor, Vh: Tensor, rho: float, out: Tensor) -> Tensor:
    """Write U (N + diag(δ)) Vh, for a truncated basis: N is formed, and it is small."""
    A = product(U.mT, G.to(U.dtype))
    N = product(A, Vh.mT)
    g = N.diagonal(dim1=-2, dim2=-1).clone()
    delta, finite = _delta(g, S, rho)
    N.diagonal(dim1=-2, dim2=-1).add_(delta)
    # as large as the next product
    del A
    return _replace(G, U, product(N, Vh), g, finite, out)


def _delta(g: Tensor, S: Tensor, rho: float) -> tuple[Tensor, Tensor]:
    """Return δ = g' − g, zero in a matrix whose g is not finite, and a flag for each matrix whose g is."""
    finite = g.isfinite().all(-1, keepdim=True)
    return torch.where(finite, rescale(g, S, rho) - g, 0), finite


def _replace(G: Tensor, U: Tensor, A: Tensor, g: Tensor, finite: Tensor, out: Tensor) -> Tensor:
    """Write out = U A where G is finite, G where it is not."""
    finite = finite.unsqueeze(-1)
    A.masked_fill_(~finite, 0)
    add_product(torch.mul(G, ~finite, out=out), U, A, out)
    return g
