"""The paper's stages and decompositions of small matrices, in plain torch, in float32 or better."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gsr_kernels import reference
from gsr_kernels.backends.torch.products import on_host, power_of_two

Vector = npt.NDArray[np.float32]


def widened(*tensors: Tensor) -> tuple[torch.dtype, list[Tensor]]:
    """Return the dtype that tensors have in common, and the tensors in it or in float32, whichever is wider."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    return dtype, [tensor.to(wide) for tensor in tensors]


def project(G: Tensor, U: Tensor, Vh: Tensor) -> Tensor:
    """Return ``N [.., k, k]`` of ``reference.project`` in the wider dtype of G and U."""
    dtype, (G, U, Vh) = widened(G, U, Vh)
    return reference.project(G, U, Vh).to(dtype)


def skew(N: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """Return H and K of ``reference.skew`` in N's dtype."""
    dtype = N.dtype
    _, (N, S) = widened(N, S)
    H, K = reference.skew(N, S)
    return H.to(dtype).contiguous(), K.to(dtype).contiguous()


def rescale(g: Tensor, S: Tensor, rho: float, floor: float = reference.FLOOR) -> Tensor:
    """Compute ``reference.rescale`` in float32 or better: ``g [.., k]``, ``S [.., k]`` -> ``g' [.., k]``.

    Squares of |g| ~ 1e25 overflow float32 and those of 1e-25 vanish, so g is first divided by the power of two next to
    its largest magnitude, which is exact.
    """
    if rho == 0:
        return g.clone()
    if g.dtype != torch.float64 and on_host(g, S):
        return torch.from_numpy(rescaled_by_numpy(g.float().numpy(), S.float().numpy(), rho, floor)).to(g.dtype)
    dtype, wide = g.dtype, torch.promote_types(g.dtype, torch.float32)
    g, S = g.to(wide), S.to(wide)
    sigma_max = S.amax(-1, keepdim=True)
    # the last power of two whose inverse is a normal number as well
    last = 1022 if wide == torch.float64 else 126
    exponent = g.abs().amax(-1, keepdim=True).frexp().exponent.clamp(-last, last)
    scaled = g * power_of_two(-exponent, wide)
    found = _rescale(torch, scaled, g, S / torch.where(sigma_max > 0, sigma_max, 1), rho, floor)
    return (found * power_of_two(exponent, wide)).to(dtype)


def rescaled_by_numpy(g: Vector, S: Vector, rho: float, floor: float = reference.FLOOR) -> Vector:
    """Compute ``rescale`` of float32, whose squares float64 holds.

    After a large product every function is fetched from memory anew: numpy's take half the time of torch's.
    """
    if rho == 0:
        return g.copy()
    with np.errstate(all="ignore"):
        return _rescale(np, g.astype(np.float64), g, S.astype(np.float64), rho, floor).astype(np.float32)


def _rescale(xp: Any, g: Any, signs: Any, S: Any, rho: float, floor: float) -> Any:
    """Compute ``reference.rescale`` by the functions of torch or of numpy, whose names agree.

    ``signs`` has the sign of every g: a tiny one may have become 0 where g was scaled.
    """
    alive = floor * xp.amax(S, -1)[..., None] < S
    squares, rescaled = g * g, g
    for group, weight in ((alive & (signs > 0), S), (alive & (signs < 0), 1 / S)):
        weight = xp.where(group, weight, 0)
        energy = xp.sum(xp.where(group, squares, 0), -1)[..., None]
        # only a group without members weighs nothing
        share = energy / xp.sum(weight, -1)[..., None]
        found = xp.copysign(xp.sqrt((1 - rho) * squares + rho * share * weight), g)
        rescaled = xp.where(group, found, rescaled)
    return rescaled


def recompose(H: Tensor, g: Tensor, K: Tensor, U: Tensor, S: Tensor, Vh: Tensor) -> Tensor:
    """Return G' of ``reference.recompose`` in U's dtype."""
    dtype = U.dtype
    _, (H, g, K, U, S, Vh) = widened(H, g, K, U, S, Vh)
    return reference.recompose(H, g, K, U, S, Vh).to(dtype)


def small_svd(A: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ``(U, S, Vh, sweeps)`` of ``A [.., k, k]`` by torch.linalg: see ``ops.small_svd``."""
    finite = A.isfinite().all(-1).all(-1)
    # torch.linalg.svd raises for the whole batch
    U, S, Vh = torch.linalg.svd(A.where(finite[..., None, None], 0))
    for factor in (U, S, Vh):
        factor.masked_fill_(~finite.reshape(*finite.shape, *[1] * (factor.ndim - finite.ndim)), torch.nan)
    return U.contiguous(), S, Vh.contiguous(), torch.where(finite, 1, -1).int()
