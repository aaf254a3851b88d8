"""Equations (2), (3), (7), (8) as two products: the skew matrices cancel, ``G' = U Uᵀ G V Vᵀ + U diag(δ) Vh``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gsr_kernels.backends.torch.products import dots, on_host, product, write_product
from gsr_kernels.backends.torch.stages import rescale, rescaled_by_numpy

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

    if G.shape[-2] <= G.shape[-1]:
        # a wide weight is a tall one transposed; so is a square one, whose G and Vh then lie as oneDNN reads them
        return _tall(G.mT, Vh.mT, S, U.mT, rho, out_of_span, out.mT)
    return _tall(G, U, S, Vh, rho, out_of_span, out)


def _tall(G: Tensor, U: Tensor, S: Tensor, Vh: Tensor, rho: float, out_of_span: str, out: Tensor) -> Tensor:
    """Do it for ``d1 >= d2``, so that all that is made on the way is of Vh's size."""
    wide, k = G.to(U.dtype), S.shape[-1]
    # stored as Vh is: they are read side by side
    A = product(U.mT, wide) if Vh.is_contiguous() else product(wide.mT, U).mT
    if out_of_span == "keep" or G.shape[-2] == k:
        # all of G stays: G + U diag(δ) Vh
        g = dots(A, Vh)
        delta, _ = _delta(g, S, rho)
        write_product(U, torch.mul(Vh, delta.unsqueeze(-1), out=A), out, G)
        return g
    if G.shape[-1] == k:
        # U (Uᵀ G + diag(δ) Vh)
        g = dots(A, Vh)
        delta, finite = _delta(g, S, rho)
        A.addcmul_(delta.unsqueeze(-1), Vh)
    else:
        # U (N + diag(δ)) Vh: the N of a truncated basis is small
        N = product(A, Vh.mT)
        g = N.diagonal(dim1=-2, dim2=-1).clone()
        delta, finite = _delta(g, S, rho)
        N.diagonal(dim1=-2, dim2=-1).add_(delta)
        write_product(N, Vh, A)
    if on_host(finite) and finite.numpy().all():
        write_product(U, A, out)
    else:
        # G where it is not finite, without a look at the device
        finite = finite.unsqueeze(-1)
        write_product(U, A.masked_fill_(~finite, 0), out, torch.mul(G, ~finite, out=out))
    return g


def _delta(g: Tensor, S: Tensor, rho: float) -> tuple[Tensor, Tensor]:
    """Return δ = g' − g, zero in a matrix whose g is not finite, and a flag for each matrix whose g is."""
    if g.dtype == torch.float32 and on_host(g, S):
        found = g.numpy()
        sound = np.isfinite(found).all(-1, keepdims=True)
        rescaled = rescaled_by_numpy(found, S.float().numpy(), rho)
        delta = np.subtract(rescaled, found, out=np.zeros_like(found), where=sound)
        return torch.from_numpy(delta), torch.from_numpy(sound)
    finite = g.isfinite().all(-1, keepdim=True)
    return torch.where(finite, rescale(g, S, rho) - g, 0), finite
