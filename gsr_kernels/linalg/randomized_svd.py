"""The leading singular triplets of a matrix from a random sketch of its range."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from gsr_kernels.linalg.cholesky_qr import orthonormal
from gsr_kernels.linalg.precision import full_precision
from gsr_kernels.linalg.scaling import finite_and_scaled
from gsr_kernels.linalg.svd import svd

SKETCHES = ("gaussian", "sparse")

# vectors and rounds of the power method that estimates the error
PROBES, ROUNDS = 16, 3


class RandomizedSVD(NamedTuple):
    """``U [.., m, k]``, ``S [.., k]`` descending, ``Vh [.., k, n]``, and the error ``[..]``: an estimate of
    ``‖W − U diag(S) Vh‖``, the spectral norm."""

    U: Tensor
    S: Tensor
    Vh: Tensor
    error: Tensor


def randomized_svd(
    W: Tensor,
    rank: int,
    oversampling: int | None = None,
    power_iterations: int | None = None,
    seed: int = 0,
    *,
    tolerance: float | None = None,
    sketch: str = "gaussian",
) -> RandomizedSVD:
    """The ``rank`` largest singular triplets of ``W [.., m, n]``, in float32 or, where W is float64, in float64.

    Halko, Martinsson, Tropp: Finding structure with randomness, SIAM Review 53, 2011 (algorithms 4.4 and 5.1): sketch
    ``Y = W Ω``, power iterations ``Y <- W Wᵀ Y``, ``Q`` from CholeskyQR2, the exact SVD of ``Qᵀ W``. Ω follows from the
    seed alone, the same on every device.

    Args:
        W: any real float dtype; leading dimensions are batches.
        rank: 1 <= rank <= min(m, n).
        oversampling: columns p that the sketch has beyond rank; see ``defaults``.
        power_iterations: q; see ``defaults``.
        seed: of Ω, 0 <= seed < 2^63.
        tolerance: doubles p and raises q until the estimated error is at most ``(1 + tolerance)`` times the best that
            any matrix of this rank can do; at worst W is decomposed exactly.
        sketch: "gaussian" or "sparse" Ω.

    Returns:
        ``(U, S, Vh, error)``. ``error`` is found by a power method on the remainder: it never exceeds the true error,
        and is seldom more than a few hundredths below it.

    Raises:
        TypeError: W is not a real floating-point matrix.
        ValueError: W holds NaN or Inf; a setting is out of range.
    """
    W, exponent = finite_and_scaled(W)
    most = min(W.shape[-2:])
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= most:
        raise ValueError(f"rank must be an integer in [1, {most}] for W {tuple(W.shape)}, got {rank!r}")
    p, q = defaults(rank, most)
    p, q = p if oversampling is None else oversampling, q if power_iterations is None else power_iterations
    for name, value in (("oversampling", p), ("power_iterations", q), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
            raise ValueError(f"{name} must be an integer in [0, 2^63), got {value!r}")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance must be None or positive, got {tolerance!r}")
    if sketch not in SKETCHES:
        raise ValueError(f"sketch must be one of {', '.join(SKETCHES)}, got {sketch!r}")
    with full_precision(), torch.no_grad():
        while True:
            width = min(rank + p, most)
            U, S, Vh = svd(W) if width == most else _sketched(W, rank, width, q, seed, sketch)
            beyond = S[..., rank:].amax(-1) if rank < width else torch.zeros_like(S[..., 0])
            U, S, Vh = U[..., :rank], S[..., :rank], Vh[..., :rank, :]
            error = _error(W, U, S, Vh)
            rounding = most**0.5 * torch.finfo(W.dtype).eps * S[..., 0]
            if tolerance is None or width == most or (error <= (1 + tolerance) * beyond + rounding).all():
                break
            p, q = 2 * max(p, 1), q + 1
    return RandomizedSVD(U, torch.ldexp(S, exponent), Vh, torch.ldexp(error, exponent.squeeze(-1)))


def defaults(rank: int, most: int) -> tuple[int, int]:
    """Oversampling p and power iterations q for k = rank of ``most`` = min(m, n) directions."""
    return rank, 2


def _sketched(W: Tensor, rank: int, width: int, q: int, seed: int, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    backend = "triton" if W.is_cuda and W.dtype == torch.float32 and find_spec("triton") else "torch"
    Y = import_module(f"gsr_kernels.backends.{backend}.sketch").sketch(W, width, seed, kind)
    for _ in range(q):
        Y = W @ orthonormal(W.mT @ Y)
    Q = orthonormal(Y)
    V, S, Uh = svd(W.mT @ Q)
    return Q @ Uh[..., :rank, :].mT, S, V[..., :rank].mT


def _error(W: Tensor, U: Tensor, S: Tensor, Vh: Tensor) -> Tensor:
    generator = torch.Generator(W.device).manual_seed(0)
    x = torch.randn(W.shape[-1], min(PROBES, *W.shape[-2:]), dtype=W.dtype, device=W.device, generator=generator)
    for _ in range(ROUNDS):
        y = W @ x - U @ (S.unsqueeze(-1) * (Vh @ x))
        x = torch.linalg.qr(W.mT @ y - Vh.mT @ (S.unsqueeze(-1) * (U.mT @ y))).Q
    y = W @ x - U @ (S.unsqueeze(-1) * (Vh @ x))
    return torch.linalg.svdvals(y).amax(-1)
