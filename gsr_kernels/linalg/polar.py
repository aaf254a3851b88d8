"""Orthonormal polar factor by products alone, and steps on matrices with orthonormal columns."""

import torch
from torch import Tensor

from gsr_kernels.backends.torch.products import product

# the largest factor of a scaled step. The best cubic for a wide interval would take 3^1/2, but folds the largest
# singular values onto the smallest, and with them their rounding errors: here they stay above a third
LARGEST_SCALE = 1.6

# a tangent step stretches: singular values of X + D are between 1 and √(1 + ‖D‖²), so that this supports steps of ‖D‖
# up to 30 and ranks up to 100
LEAST = 0.01


def polar_factor(W: Tensor, low: float | None = None) -> Tensor:
    """Return the Q of ``W = Q H``, ``W [.., m, n]``, m >= n, Q with orthonormal columns, H positive semidefinite.

    Newton–Schulz, ``X <- a X (3 − a² XᵀX) / 2``, each a the best for the interval that the singular values of X still
    fill, as far as that is stable (Chen, Chow: A stable scaling of Newton–Schulz for improving the sign function
    computation of a Hermitian matrix, 2014). The number of steps follows from the dtype, so that nothing waits for the
    device: directions with σ below its precision times ‖W‖ are not orthonormal in the result. Where the least σ is
    known to be above ``low`` n^¼ ‖W‖, that number saves steps.
    """
    low = torch.finfo(W.dtype).eps if low is None else low
    gram = product(W.mT, W)
    # at least the largest singular value, at most the fourth root of n times it
    bound = torch.linalg.matrix_norm(gram).sqrt()[..., None, None]
    bound = torch.where(bound > 0, bound, 1)
    X, gram = W / bound, gram / bound.square()
    for scale in _scales(low):
        # [.., n, n] first: two products of X's size would cost more where m > n
        step = gram.mul_(-(scale**3) / 2)
        step.diagonal(dim1=-2, dim2=-1).add_(1.5 * scale)
        X = product(X, step)
        gram = product(X.mT, X)
    return X


def away(X: Tensor, F: Tensor) -> Tensor:
    """Return ``(I − F Fᵀ) X``, ``X [.., d, r]``, ``F [.., d, p]`` with orthonormal or zero columns."""
    return X - F @ (F.mT @ X)


def tangent(X: Tensor, D: Tensor) -> Tensor:
    """Return ``D − X sym(Xᵀ D)``, the part of D that leaves ``Xᵀ X = I`` as it is; applied twice it is the same."""
    inner = X.mT @ D
    return D - X @ ((inner + inner.mT) / 2)


def retract(X: Tensor, D: Tensor) -> Tensor:
    """Return the nearest orthonormal columns ``[.., d, r]`` to X + D, D a tangent at X, without waiting."""
    return polar_factor(X + D, LEAST)


def _scales(low: float) -> list[float]:
    """Return the scale of every step that brings singular values in [low, 1] to 1."""
    scales = []
    while low < 1 - 1e-4:
        scale = min((3 / (1 + low + low * low)) ** 0.5, LARGEST_SCALE)
        low = min(_cubic(scale * low), _cubic(scale))
        scales.append(scale)
    # the error of an unscaled step is the square of the one before
    return [*scales, 1.0, 1.0]


def _cubic(x: float) -> float:
    return x * (3 - x * x) / 2
