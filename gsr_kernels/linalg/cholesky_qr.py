"""Thin QR of tall matrices from products and small Cholesky factors alone."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gsr_kernels.backends.torch.products import product

# of the diagonal of a Cholesky factor: below, one pass leaves columns that are far from orthonormal
SPREAD = 1e-2

# of a Gram matrix to the identity: Cholesky is exact to rounding there
NEAR = 0.5


class QR(NamedTuple):
    """``W = Q R``: ``Q [.., m, n]`` with orthonormal columns, ``R [.., n, n]`` upper triangular."""

    Q: Tensor
    R: Tensor


def gram(Y: Tensor) -> Tensor:
    """Return ``YᵀY [.., n, n]`` of ``Y [.., m, n]``."""
    return product(Y.mT, Y)


def householder(W: Tensor) -> QR:
    """Return QR by reflections: Q is orthonormal whatever the rank of W, and NaN where W holds NaN or Inf."""
    Q, R = torch.linalg.qr(W)
    # LAPACK's reflections pass over a column with Inf that is zero below the diagonal
    finite = W.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    return QR(Q.where(finite, torch.nan), R.where(finite, torch.nan))


def cholesky_qr(
    W: Tensor, gram: Callable[[Tensor], Tensor] = gram, householder: Callable[[Tensor], QR] = householder
) -> QR:
    """Return the shifted CholeskyQR of ``W [.., m, n]``, m >= n.

    The first pass adds a small multiple of the identity to the Gram matrix, which lets large condition numbers
    through; one or two more bring Q to orthonormality (Fukaya, Kannan, Nakatsukasa, Yamamoto, Yanagisawa: Shifted
    Cholesky QR for computing the QR factorization of ill-conditioned matrices, SIAM J. Sci. Comput. 42, 2020). Where
    three passes are not enough, at the latest for a W without full rank, Householder reflections take over, which
    complete Q. Q is orthonormal either way; a W with NaN or Inf gives NaN.

    ``gram`` and ``householder`` are those of a W whose rows are sharded over ranks, each with its own.
    """
    identity = torch.eye(W.shape[-1], dtype=W.dtype, device=W.device)
    Q = R = W
    for shifted in (True, False, False):
        square = gram(Q)
        distance = torch.linalg.matrix_norm(square - identity)
        if shifted:
            # rounding moves the eigenvalues of a Gram matrix by about this much
            shift = W.shape[-1] ** 0.5 * torch.finfo(W.dtype).eps * torch.linalg.matrix_norm(square)
            square = square + shift[..., None, None] * identity
        factor, info = torch.linalg.cholesky_ex(square, upper=True)
        Q, R = _divided(Q, factor), factor if shifted else factor @ R
        if not shifted and ((info == 0) & (distance < NEAR)).all():
            return QR(Q, R)
    return householder(W)


def orthonormal(Y: Tensor) -> Tensor:
    """Return an orthonormal basis of the columns of ``Y [.., m, n]``, m >= n, by what is fast on its device."""
    factor = _factor(gram(Y)) if Y.device.type == "cpu" else None
    if factor is not None:
        Q = _divided(Y, factor)
        square = gram(Q)
        identity = torch.eye(Y.shape[-1], dtype=Y.dtype)
        if (torch.linalg.matrix_norm(square - identity) < NEAR).all():
            return _divided(Q, torch.linalg.cholesky(square, upper=True))
    return _of_dependent(Y)


def _of_dependent(Y: Tensor) -> Tensor:
    """Return an orthonormal basis of columns of which some may depend on others."""
    # on a CPU reflections are not slower than three passes
    return householder(Y).Q if Y.device.type == "cpu" else cholesky_qr(Y).Q


def normalized(
    Y: Tensor, gram: Callable[[Tensor], Tensor] = gram, orthonormal: Callable[[Tensor], Tensor] = _of_dependent
) -> Tensor:
    """Return columns with the span of ``Y [.., m, n]``, m >= n, near enough to orthonormal to be multiplied on."""
    factor = _factor(gram(Y))
    return orthonormal(Y) if factor is None else _divided(Y, factor)


def _factor(square: Tensor) -> Tensor | None:
    """Return the Cholesky factors of Gram matrices, None where the columns of one are nearly dependent."""
    factor, info = torch.linalg.cholesky_ex(square, upper=True)
    diagonal = factor.diagonal(dim1=-2, dim2=-1)
    return factor if ((info == 0) & (diagonal.amin(-1) > SPREAD * diagonal.amax(-1))).all() else None


def _divided(Y: Tensor, factor: Tensor) -> Tensor:
    """Return ``Y factor⁻¹`` of an upper triangular factor, stored row by row: LAPACK solves for the transposed."""
    return torch.linalg.solve_triangular(factor.mT, Y.mT, upper=False).mT
