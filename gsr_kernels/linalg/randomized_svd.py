"""The leading singular triplets of a matrix from a random sketch of its range."""

from __future__ import annotations

from numbers import Real
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gsr_kernels.backends.dispatch import backend_for
from gsr_kernels.backends.torch.products import full_precision, product, transposed_product
from gsr_kernels.backends.torch.sketch import SPARSITY, sketch
from gsr_kernels.checks import check_choice, is_integer
from gsr_kernels.linalg.cholesky_qr import normalized, orthonormal
from gsr_kernels.linalg.scaling import finite_and_scaled, unscaled
from gsr_kernels.linalg.svd import svd

Sketch = Literal["gaussian", "sparse"]

# vectors and rounds of the power method that estimates the error
PROBES, ROUNDS = 16, 2


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
    sketch: Sketch = "gaussian",
) -> RandomizedSVD:
    """Return the ``rank`` largest singular triplets of ``W [.., m, n]``, in float32 or, where W is float64, in float64.

    Halko, Martinsson, Tropp: Finding structure with randomness, SIAM Review 53, 2011 (algorithms 4.4 and 5.1): sketch
    ``Y = W Ω``, power iterations ``Y <- W Wᵀ Y``, ``Q`` from CholeskyQR2, the exact SVD of ``Qᵀ W``. Ω follows from the
    seed alone, the same on every device.

    Args:
        W: any real float dtype; leading dimensions are batches.
        rank: 1 <= rank <= min(m, n).
        oversampling: columns p that the sketch has beyond rank; see ``defaults``. A sparse sketch takes 16 - rank by
            default where that is more.
        power_iterations: q; see ``defaults``.
        seed: of Ω, 0 <= seed < 2^63.
        tolerance: doubles p and raises q until the estimated error is at most ``(1 + tolerance)`` times the best that
            any matrix of this rank can do; at worst W is decomposed exactly.
        sketch: "gaussian" or "sparse" Ω; a sparse one has 16 columns or more, unless it takes in W whole.

    Returns:
        ``(U, S, Vh, error)``. ``error`` is found by a power method on the remainder: it does not exceed the true
        error but for rounding, and was at most 0.1 of it below, by default parameters 0.04.

    Raises:
        TypeError: W is not a real floating-point matrix.
        ValueError: W holds NaN or Inf; a σ overflows; a setting is out of range.
    """
    W, exponent = finite_and_scaled(W)
    most = min(W.shape[-2:])
    if not is_integer(rank) or not 1 <= rank <= most:
        raise ValueError(f"rank must be an integer in [1, {most}] for W {tuple(W.shape)}, got {rank!r}")
    # of numpy's integers, too
    rank = int(rank)
    p, q = defaults(rank, most)
    if sketch == "sparse":
        p = max(p, SPARSITY - rank)
    p, q = p if oversampling is None else oversampling, q if power_iterations is None else power_iterations
    for name, value in (("oversampling", p), ("power_iterations", q), ("seed", seed)):
        if not is_integer(value) or not 0 <= value < 1 << 63:
            raise ValueError(f"{name} must be an integer in [0, 2^63), got {value!r}")
    p, q, seed = int(p), int(q), int(seed)
    if tolerance is not None and not (isinstance(tolerance, Real) and tolerance > 0):
        raise ValueError(f"tolerance must be None or positive, got {tolerance!r}")
    check_choice("sketch", sketch, Sketch)
    if sketch == "sparse" and rank + p < min(SPARSITY, most):
        raise ValueError(
            f"sketch 'sparse' has an entry in {SPARSITY} columns, and rank + oversampling are {rank + p}: "
            f"raise oversampling to {SPARSITY - rank}, or take 'gaussian'"
        )
    with full_precision(W.device), torch.no_grad():
        while True:
            width = min(rank + p, most)
            if width == most:
                U, S, Vh = svd(W)
                U, V = U[..., :rank], Vh.mT
            else:
                U, S, V = _sketched(W, rank, width, q, seed, sketch)
            error = _error(W, U, S[..., :rank], V[..., :rank], V[..., rank:])
            # what the sketch itself has beyond the rank: at most σ of the best possible remainder
            beyond = S[..., rank] if rank < width else torch.zeros_like(error)
            rounding = most**0.5 * torch.finfo(W.dtype).eps * S[..., 0]
            if tolerance is None or width == most or (error <= (1 + tolerance) * beyond + rounding).all():
                break
            p, q = 2 * max(p, 1), q + 1
    error = unscaled(error.unsqueeze(-1), exponent).squeeze(-1)
    return RandomizedSVD(U, unscaled(S[..., :rank], exponent), V[..., :rank].mT, error)


def defaults(rank: int, most: int) -> tuple[int, int]:
    """Return oversampling p and power iterations q for k = ``rank`` of n = ``most`` = min(m, n) directions.

    p = k, and q = 2 from k = n/4 on, 4 below.

    On flat spectra, the hard ones, that kept the error within 1.03 of the best at every k / n that was measured;
    q = 2 for k = n/16 comes to 1.05 (docs/performance.md).
    """
    return rank, 2 if 4 * rank >= most else 4


def _sketched(W: Tensor, rank: int, width: int, q: int, seed: int, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Decompose W projected on the sketched range: U ``[.., m, rank]``, S ``[.., width]``, V ``[.., n, width]``."""
    if backend_for("sketch", W.device, W.dtype)[0] == "triton":
        from gsr_kernels.backends.triton import sketch as kernel

        Y = kernel.sketch(W, width, seed, kind)
    else:
        Y = sketch(W, width, seed, kind)
    for _ in range(q):
        Y = product(W, transposed_product(W, normalized(Y)))
    Q = orthonormal(Y)
    V, S, Uh = svd(transposed_product(W, Q))
    return product(Q, Uh[..., :rank, :].mT), S, V


def _error(W: Tensor, U: Tensor, S: Tensor, V: Tensor, beyond: Tensor) -> Tensor:
    """Return ‖W − U diag(S) Vᵀ‖ from below, by a power method from random vectors and those just ``beyond`` V."""
    generator = torch.Generator(W.device).manual_seed(0)
    x = torch.randn(W.shape[-1], min(PROBES, *W.shape[-2:]), dtype=W.dtype, device=W.device, generator=generator)
    x = torch.cat([x.expand(*W.shape[:-2], -1, -1), beyond[..., :PROBES]], -1)[..., -x.shape[-1] :]
    for _ in range(ROUNDS):
        x = torch.linalg.qr(x).Q
        y = product(W, x) - U @ (S.unsqueeze(-1) * (V.mT @ x))
        x = transposed_product(W, y) - V @ (S.unsqueeze(-1) * (U.mT @ y))
    return torch.linalg.svdvals(x).amax(-1).sqrt()
