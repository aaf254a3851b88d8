"""Scaling of a decomposition's argument by powers of two, and of its σ back."""

import math

import torch
from torch import Tensor

from gsr_kernels.backends.torch.products import times_power_of_two

# magnitudes from its inverse to this are left as they are: float32 holds sums of their fourth powers
SAFE = 2.0**20


def finite_and_scaled(W: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return ``W [.., m, n]`` in float32 or better, of harmless magnitude, and the powers of two ``[.., 1]`` it took.

    None in their place where it took none. Raises TypeError where W is not a real floating-point matrix, ValueError
    where it holds NaN or Inf.
    """
    if not isinstance(W, Tensor) or not W.is_floating_point() or W.ndim < 2 or not W.numel() or W.itemsize < 2:
        raise TypeError("W must be a real, non-empty floating-point matrix [.., m, n] of 16 bits or more")
    W = W.detach().to(torch.promote_types(W.dtype, torch.float32))
    # many times faster on a CPU than the norm that they are
    largest = torch.maximum(W.amax((-2, -1), keepdim=True), -W.amin((-2, -1), keepdim=True))
    low, high = (bound.item() for bound in largest.aminmax())
    # NaN is the least and the largest of what holds it
    if not math.isfinite(high):
        raise ValueError("W holds NaN or Inf: it has no singular value decomposition")
    if low >= 1 / SAFE and high <= SAFE:
        return W, None
    exponent = largest.frexp().exponent
    return times_power_of_two(W, -exponent), exponent.squeeze(-1)


def unscaled(S: Tensor, exponent: Tensor | None) -> Tensor:
    """Return singular values ``[.., k]`` times those powers of two; ValueError where they overflow their dtype."""
    if exponent is None:
        return S
    S = times_power_of_two(S, exponent)
    if not S.isfinite().all():
        raise ValueError(f"a singular value of W overflows {S.dtype}: pass W in float64")
    return S
