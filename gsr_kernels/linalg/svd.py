"""The exact thin SVD: several drivers, each result checked, the next one where a check fails."""

from __future__ import annotations

import math
import warnings
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from gsr_kernels.backends.cuda import small_svd
from gsr_kernels.backends.torch.products import full_precision
from gsr_kernels.linalg.cholesky_qr import cholesky_qr
from gsr_kernels.linalg.drivers import chain, seconds
from gsr_kernels.linalg.polar import polar_factor
from gsr_kernels.linalg.scaling import finite_and_scaled, unscaled

# ``eigh`` errs by roundings of the largest eigenvalue: directions below this share of it are decomposed once more,
# among themselves
HEAD = 1e-2

# of the largest σ: below, a decomposition by WᵀW in float64 would leave an error of more than 2e-6 in UᵀU
LEAST = 3e-6

# of an element of a matrix that a product has made
ROUNDINGS = 4

# roundings by which the squares of the lengths of orthonormal columns may differ from 1: up to 12 were seen
LACKING = 40

# random vectors that a check multiplies by
PROBES = 16

# rows that a check sums at a time: of 10^5 the error of one float32 sum exceeds the tolerance
ROWS = 1 << 12


class SVD(NamedTuple):
    """``W = U diag(S) Vh``: ``U [.., m, k]``, ``S [.., k]`` descending, ``Vh [.., k, n]``, k = min(m, n)."""

    U: Tensor
    S: Tensor
    Vh: Tensor


def svd(W: Tensor, driver: str | None = None) -> SVD:
    """Return the exact thin SVD of ``W [.., m, n]`` in float32 or, where W is float64, in float64.

    U and Vh are orthonormal also where W has no full rank: the directions with σ = 0 are completed.

    Args:
        W: any real float dtype; leading dimensions are batches.
        driver: the first to try. On a GPU "jacobi" (float32, r <= 256, where the extension was built), "polar" (polar
            factor by products, then ``eigh``), "gesvdj" or "gesvd" (cuSOLVER); on a CPU "gram" (``eigh`` of WᵀW in
            float64; of float32), "gesdd" (LAPACK) or "polar"; anywhere "float64" (on the CPU). By default "gram" on a
            CPU, "gesdd" for float64, and on a GPU the fastest of jacobi, polar and
            gesvdj, which are timed once for each size on a machine (its user cache directory keeps the answer).

    Every result is checked on its device for finiteness, orthonormality and residual, and the next driver takes over,
    with a warning, for the matrices that fail.

    Raises:
        TypeError: W is not a real floating-point matrix.
        ValueError: W holds NaN or Inf; a σ overflows; there is no such driver.
        torch.linalg.LinAlgError: no driver's result passed.
    """
    W, exponent = finite_and_scaled(W)
    batch, (m, n), r = W.shape[:-2], W.shape[-2:], min(W.shape[-2:])
    with full_precision(W.device), torch.no_grad():
        drivers = chain(W.device, r, driver, partial(_seconds, W.device), W.dtype)
        U, S, Vh = _first_sound(W.reshape(-1, m, n), drivers)
    return SVD(U.reshape(*batch, m, r), unscaled(S.reshape(*batch, r), exponent), Vh.reshape(*batch, r, n))


def _seconds(device: torch.device, driver: str, size: int) -> float:
    """Return what a driver takes for a random square matrix; infinity where it fails."""
    generator = torch.Generator(device).manual_seed(0)
    W = torch.randn(1, size, size, device=device, generator=generator)
    result, _ = _attempt(W, driver)
    if result is None or not _sound(W, result).all():
        return math.inf
    return seconds(lambda: _drive(W, driver), device)


def _attempt(W: Tensor, driver: str) -> tuple[SVD | None, RuntimeError | None]:
    """Return what a driver makes of ``W [b, m, n]``, or why it failed."""
    try:
        return _drive(W, driver), None
    except torch.OutOfMemoryError:
        # the next one would take as much
        raise
    except RuntimeError as error:
        return None, error


def _first_sound(W: Tensor, chain: tuple[str, ...]) -> SVD:
    """Decompose ``W [b, m, n]`` by the first driver, and what that fails on by the rest of the chain."""
    driver, *rest = chain
    result, error = _attempt(W, driver)
    sound = torch.zeros(len(W), dtype=torch.bool, device=W.device) if result is None else _sound(W, result)
    if result is not None and sound.all():
        return result
    what = f"{int((~sound).sum())} of {len(W)} matrices {W.shape[-2]}x{W.shape[-1]}"
    if not rest:
        raise torch.linalg.LinAlgError(
            f"no driver decomposed {what} to orthonormal factors with a small residual"
        ) from error
    warnings.warn(f"gsr_kernels: svd by {driver} failed its checks on {what}; {rest[0]} takes over", stacklevel=4)
    redone = _first_sound(W[~sound], tuple(rest))
    if result is None:
        return redone
    for factor, better in zip(result, redone):
        factor[~sound] = better
    return result


def _drive(W: Tensor, driver: str) -> SVD:
    if driver in ("polar", "jacobi"):
        return _by_core(W, driver)
    if driver == "gram":
        return _by_gram(W)
    if driver == "float64":
        return SVD(*(factor.to(W) for factor in torch.linalg.svd(W.cpu().double(), full_matrices=False)))
    # LAPACK's driver has no name in torch
    return SVD(*torch.linalg.svd(W, full_matrices=False, driver=None if driver == "gesdd" else driver))


def _by_gram(W: Tensor) -> SVD:
    """Decompose W in float32 by the eigenvectors V of WᵀW in float64, U = W V / σ; a wide W is a tall one transposed.

    float64 holds the square of a σ down to 1e-8 of the largest one. The directions for which U would not be orthonormal
    any more, from ``LEAST`` on, are decomposed once more among themselves.
    """
    if W.shape[-2] < W.shape[-1]:
        V, S, Uh = _by_gram(W.mT)
        return SVD(Uh.mT, S, V.mT)
    wide = W.double()
    V = torch.linalg.eigh(wide.mT @ wide).eigenvectors.flip(-1)
    WV = wide @ V
    # the length of W v is nearer to σ than the root of an eigenvalue is; neighbours may be out of order by a rounding
    S = WV.square().sum(-2).sqrt_().cummin(-1).values
    U = (WV / S.unsqueeze(-2)).float()
    large = (LEAST * S[..., :1] < S).sum(-1).tolist()
    for index, head in enumerate(large):
        if head < S.shape[-1]:
            _small_once_more(wide[index], WV[index, :, head:], U[index], S[index], V[index], head)
    return SVD(U, S.float(), V.float().mT)


def _small_once_more(W: Tensor, WV: Tensor, U: Tensor, S: Tensor, V: Tensor, head: int) -> None:
    """Decompose the directions from ``head`` on, their W V among them, in place; complete U for those with σ = 0.

    Those that the rounding of W's elements in float32 has made get σ = 0: no element tells them from zero.
    """
    left, right = U[:, :head].double(), V[:, head:]
    WV = WV - left @ (left.mT @ WV)
    # ‖E v‖² of independent errors E, of few roundings of each element of W
    rounding = (ROUNDINGS * torch.finfo(U.dtype).eps) ** 2 * (W.square().sum(0) @ right.square())
    if (WV.square().sum(0) <= rounding).all():
        small = torch.randn(WV.shape, generator=torch.Generator().manual_seed(0))
        S[head:] = 0
    else:
        small, sigma, turn = torch.linalg.svd(WV, full_matrices=False)
        # the first one of a rounding more than its neighbour
        S[head:] = sigma.clamp(max=S[head - 1])
        V[:, head:] = right @ turn.mT
    U[:, head:] = small
    U.copy_(_orthonormalized(U))


def _by_core(W: Tensor, driver: str) -> SVD:
    """Decompose W = Q R by its square core R; a wide W is a tall one transposed.

    Jacobi rotates the rows of R, which are nearer to orthogonal than W's: half the sweeps where W is ill-conditioned
    (Drmač, Veselić: New fast and accurate Jacobi SVD algorithm, SIAM J. Matrix Anal. 29, 2008).
    """
    m, n = W.shape[-2:]
    if m < n:
        V, S, Uh = _by_core(W.mT, driver)
        return SVD(Uh.mT, S, V.mT)
    if driver == "polar" and m == n:
        return _polar(W)
    Q, R = cholesky_qr(W)
    U, S, Vh = _polar(R) if driver == "polar" else small_svd(R)[:3]
    return SVD(Q @ U, S, Vh)


def _polar(W: Tensor) -> SVD:
    """Decompose a square W = Q H by products, H = V diag(S) Vh by eigh, U = Q V.

    Higham, Papadimitriou: A parallel algorithm for computing the polar decomposition, Parallel Computing 20, 1994.
    """
    Q = polar_factor(W)
    H = Q.mT @ W
    V = torch.linalg.eigh((H + H.mT) / 2).eigenvectors.flip(-1)
    U = _completed(Q @ V)
    WV = W @ V
    # u_iᵀ W v_i is nearer to σ_i than the eigenvalue is, and may change the order of neighbours
    S = (U * WV).sum(-2)
    large = S.abs() > HEAD * S[..., :1].abs()
    # of a zero matrix nothing is
    head = int(torch.where(large.any(-1), large.sum(-1), S.shape[-1]).min())
    if (S[..., head:].abs() > torch.finfo(S.dtype).eps * S[..., :1]).any():
        tail = _polar(U[..., head:].mT @ WV[..., head:])
        U = torch.cat([U[..., :head], U[..., head:] @ tail.U], -1)
        S = torch.cat([S[..., :head], tail.S], -1)
        V = torch.cat([V[..., :head], V[..., head:] @ tail.Vh.mT], -1)
    U = U * torch.where(S < 0, -1, 1).unsqueeze(-2)
    S, order = S.abs().sort(descending=True, stable=True)
    order = order.unsqueeze(-2)
    return SVD(U.take_along_dim(order, -1), S, V.take_along_dim(order, -1).mT)


def _completed(U: Tensor) -> Tensor:
    """Return the columns of U made orthonormal in their order; those of σ = 0 may hold anything.

    Nothing makes a column of a polar factor's product with V too long, so that ‖UᵀU − I‖ is no larger than the worst
    of its diagonal says.
    """
    lacking = ~((U.square().sum(-2) - 1).abs().amax(-1) < LACKING * torch.finfo(U.dtype).eps)
    if lacking.any():
        U[lacking] = _orthonormalized(U[lacking])
    return U


def _orthonormalized(U: Tensor) -> Tensor:
    """Return the columns of U made orthonormal in their order, those that are already as they are."""
    Q, R = torch.linalg.qr(U)
    return Q * torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1, 1).unsqueeze(-2)


def _sound(W: Tensor, result: SVD) -> Tensor:
    """Return the matrices of the batch that are decomposed, as a mask: a NaN or Inf anywhere fails its comparison.

    Random vectors x estimate norms, ‖E x‖² has the mean ‖E‖²: of QᵀQ − I for the factor Q of the short side, which is
    square, of PᵀP − I for the other, and, since Q x is as random as x, of W − P diag(S) Qᵀ. The order of σ and their
    signs, which none of these sees, are looked at. The vectors are the same for every matrix of a size: an error in one
    σ_i always weighs ‖x_i‖, more or less than another's.
    """
    U, S, Vh = result
    W, P, Q = (W, U, Vh.mT) if W.shape[-2] >= W.shape[-1] else (W.mT, Vh.mT, U)
    x = _probes(W.shape[-1], W.dtype, W.device).expand(len(W), -1, -1)
    y = Q @ x
    WQx, QQx = W @ y, Q.mT @ y
    PSQQx, Px = (P @ torch.cat([S.unsqueeze(-1) * QQx, x], -1)).split(PROBES, -1)
    # several times what rounding leaves, a fraction of what a product in TF32 or one lost direction does: LAPACK's
    # residuals of a few entries in float64 reach 32 roundings
    tolerance = max(100.0, 10 * S.shape[-1] ** 0.5) * torch.finfo(W.dtype).eps
    defect = tolerance * (PROBES * S.shape[-1]) ** 0.5
    orthonormal = (_norm(QQx - x) < defect) & (_norm(_summed(P, Px) - x) < defect)
    descending = (S.diff() <= 0).all(-1) & (S[..., -1] >= 0)
    return (_norm(WQx - PSQQx) <= tolerance * _norm(WQx)) & orthonormal & descending


@lru_cache(maxsize=8)
def _probes(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the random vectors of a size. Small matrices, which come in numbers, notice what drawing them takes."""
    return torch.randn(n, PROBES, dtype=dtype, device=device, generator=torch.Generator(device).manual_seed(0))


def _summed(A: Tensor, B: Tensor) -> Tensor:
    """Return ``AᵀB`` of long A and B, as a sum of sums."""
    if A.shape[-2] <= ROWS:
        return A.mT @ B
    return torch.stack([a.mT @ b for a, b in zip(A.split(ROWS, -2), B.split(ROWS, -2))]).sum(0)


def _norm(A: Tensor) -> Tensor:
    return torch.linalg.vector_norm(A, dim=(-2, -1))
