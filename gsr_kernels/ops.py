"""The operators: their arguments, their schemas for torch, and the backend that computes each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from gsr_kernels.backends.dispatch import Shape, backend_for
from gsr_kernels.backends.table import function
from gsr_kernels.basis import SpectralBasis
from gsr_kernels.checks import Backend, OutOfSpan, check_fit, check_out_of_span, check_rho
from gsr_kernels.reference import FLOOR

__all__ = [
    "backend_for", "implementation", "project", "recompose", "rescale", "rescale_gradient", "rescale_gradients",
    "skew", "small_svd",
]  # fmt: skip


def implementation(
    op: str,
    backend: str = "auto",
    device: torch.device | None = None,
    gradient: torch.dtype | None = None,
    basis: torch.dtype | None = None,
    shape: Shape | None = None,
) -> Callable[..., Any]:
    """Return the function of an operator that ``backend_for`` decides for, of whose arguments these are.

    Raises ValueError as ``backend_for`` does, and for a backend that lacks the operator.
    """
    return function(op, backend_for(op, device, gradient, basis or gradient, shape, backend=backend)[0])


@overload
def rescale_gradient(
    G: Tensor,
    basis: SpectralBasis,
    rho: float,
    out_of_span: OutOfSpan | None = None,
    backend: Backend = "auto",
    out: Tensor | None = None,
) -> Tensor: ...
@overload
def rescale_gradient(
    G: Sequence[Tensor],
    basis: Sequence[SpectralBasis],
    rho: float,
    out_of_span: OutOfSpan | None = None,
    backend: Backend = "auto",
    out: Sequence[Tensor] | None = None,
) -> list[Tensor]: ...
@torch.no_grad()
def rescale_gradient(
    G: Tensor | Sequence[Tensor],
    basis: SpectralBasis | Sequence[SpectralBasis],
    rho: float,
    out_of_span: OutOfSpan | None = None,
    backend: Backend = "auto",
    out: Tensor | Sequence[Tensor] | None = None,
) -> Tensor | list[Tensor]:
    """Apply Gradient Spectrum Rescaling: ``G' = U Uᵀ G V Vᵀ + U diag(g' − g) Vh`` (paper, equations 2, 3, 7, 8).

    Args:
        G: gradient of the shape of the basis's weight, ``[.., d1, d2]``, any real float dtype; or a list of them.
        basis: the weight's SpectralBasis on G's device; a list of the same length where G is a list.
        rho: 0 leaves the singular components as they are, 1 shares them out anew inside each sign group.
        out_of_span: "drop" (the paper) loses what the basis does not span, "keep" leaves it as it is. By default
            "drop" for a full-rank basis and "keep" for a truncated one.
        backend: "auto" (see ``backend_for``), "torch", "triton", "cublas", "tma" or "cutlass".
        out: receives G', of G's shape and dtype; ``out=G`` works in place.

    Returns:
        G', or the list of them, outside of autograd. A matrix with a NaN or Inf in it comes back as it came.

    Raises:
        TypeError: G or out is no real, dense floating-point tensor, basis no SpectralBasis, or one is a list alone.
        ValueError: shapes, devices or lengths differ; rho, out_of_span or backend out of range; out shares a part of
            its memory with itself or with G. Nothing was written.
    """
    single = isinstance(G, Tensor)
    for name, operand, kind in (("basis", basis, SpectralBasis), ("out", out, Tensor)):
        if operand is not None and isinstance(operand, kind) != single:
            raise TypeError(f"{name} must be a list where G is a list and {kind.__name__} where G is a Tensor")
    gradients = [G] if isinstance(G, Tensor) else list(G)
    bases = list(basis) if isinstance(basis, Sequence) else [basis]
    outs = [None] * len(gradients) if out is None else [out] if isinstance(out, Tensor) else list(out)
    if not len(gradients) == len(bases) == len(outs):
        raise ValueError(f"lists differ in length: {len(gradients)} G, {len(bases)} basis, {len(outs)} out")
    check_rho(rho)
    check_out_of_span(out_of_span)
    for gradient, one, target in zip(gradients, bases, outs):
        _check(gradient, one, target)
    modes = [out_of_span or ("drop" if one.full_rank else "keep") for one in bases]
    results = [torch.empty_like(G) if target is None else target for G, target in zip(gradients, outs)]
    if torch.compiler.is_compiling():
        # torch.compile sees an operator; in eager its boundary would cost tens of microseconds
        for gradient, one, mode, result in zip(gradients, bases, modes, results):
            _rescale_gradient(one.split(gradient), one.U, one.S, one.Vh, rho, mode, one.split(result), backend)
        return results[0] if single else results

    rescale_gradients(gradients, bases, rho, modes, results, backend)
    return results[0] if single else results


def rescale_gradients(
    gradients: Sequence[Tensor],
    bases: Sequence[SpectralBasis],
    rho: float,
    out_of_span: Sequence[str],
    outs: Sequence[Tensor],
    backend: str = "auto",
) -> list[Tensor]:
    """Write every G' to its out, and return the diagonals ``g [.., k]``. Nothing is checked."""
    together: dict[str, list[int]] = {}
    for i, (G, basis, mode) in enumerate(zip(gradients, bases, out_of_span)):
        name, _ = backend_for("step", G.device, G.dtype, basis.U.dtype, basis.dims, mode, backend)
        # there is nothing to launch for an empty batch
        together.setdefault(name if G.numel() else "torch", []).append(i)
    diagonals: dict[int, Tensor] = {}
    for name, chosen in together.items():
        each = [[values[i] for i in chosen] for values in (gradients, bases, out_of_span, outs)]
        diagonals |= zip(chosen, function("rescale_gradients", name)(each[0], each[1], rho, each[2], each[3]))
    return [diagonals[i] for i in range(len(gradients))]


def _check(G: Tensor, basis: SpectralBasis, out: Tensor | None) -> None:
    if not isinstance(basis, SpectralBasis):
        raise TypeError(f"basis must be a SpectralBasis, got {type(basis).__name__}: SpectralBasis(U, S, Vh) makes one")
    shape = basis.weight_shape
    check_fit(G=(G, shape), out=(G if out is None else out, shape), basis=(basis.U, basis.U.shape))
    if out is not None and out.dtype != G.dtype:
        raise ValueError(f"out must have the dtype of G, {G.dtype}, got {out.dtype}")
    if out is not None and not torch.compiler.is_compiling() and _overlaps(out, G):
        raise ValueError("out must be G itself, or share no memory with it nor within itself")


def _overlaps(out: Tensor, G: Tensor) -> bool:
    """Return whether two elements of out share an address, or out overlaps G without being G."""
    if any(stride == 0 and size > 1 for stride, size in zip(out.stride(), out.shape)):
        return True
    same = out.data_ptr() == G.data_ptr() and out.stride() == G.stride()
    starts = [tensor.data_ptr() for tensor in (out, G)]
    sizes = [sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride())) + 1 for tensor in (out, G)]
    ends = [start + size * out.element_size() for start, size in zip(starts, sizes)]
    return bool(out.numel()) and not same and starts[0] < ends[1] and starts[1] < ends[0]


@torch.library.custom_op("gsr_kernels::rescale_gradient", mutates_args=("out",))
def _rescale_gradient(
    G: Tensor, U: Tensor, S: Tensor, Vh: Tensor, rho: float, out_of_span: str, out: Tensor, backend: str = "auto"
) -> None:
    rescale_gradients([G], [SpectralBasis(U, S, Vh)], rho, [out_of_span], [out], backend)


_rescale_gradient.register_fake(lambda *arguments: None)


def project(G: Tensor, U: Tensor, Vh: Tensor, backend: Backend = "auto") -> Tensor:
    """Compute equation (2), ``N = Uᵀ G V`` ``[.., k, k]``: see ``reference.project``.

    G ``[.., d1, d2]``, U ``[.., d1, k]``, Vh ``[.., k, d2]`` of any strides, products in float32 or better.

    Raises TypeError for other than float dtypes, ValueError for shapes or devices that do not fit or a backend unknown.
    """
    *batch, d1, k = U.shape
    check_fit(G=(G, (*batch, d1, Vh.shape[-1])), U=(U, U.shape), Vh=(Vh, (*batch, k, Vh.shape[-1])))
    return _project(G, U, Vh, backend)


def skew(N: Tensor, S: Tensor, backend: Backend = "auto") -> tuple[Tensor, Tensor]:
    """Compute equation (3), the generators ``(H, K)`` of the turns of U and V, each ``[.., k, k]``.

    See ``reference.skew``. Their row norms say how fast a step turns each singular vector. Raises as ``project``.
    """
    check_fit(N=(N, (*S.shape, S.shape[-1])), S=(S, S.shape))
    return _skew(N, S, backend)


def rescale(g: Tensor, S: Tensor, rho: float, floor: float = FLOOR, backend: Backend = "auto") -> Tensor:
    """Compute equation (7), ``g' [.., k]`` of g and S: see ``reference.rescale``. Any magnitude of g.

    Raises as ``project``, and ValueError for a rho outside [0, 1].
    """
    check_rho(rho)
    check_fit(g=(g, S.shape), S=(S, S.shape))
    return _rescale(g, S, rho, floor, backend)


def recompose(H: Tensor, g: Tensor, K: Tensor, U: Tensor, S: Tensor, Vh: Tensor, backend: Backend = "auto") -> Tensor:
    """Compute equation (8), ``G' = U [H diag(S) + diag(g) + diag(S) Kᵀ] Vh`` ``[.., d1, d2]``.

    ``rescale_gradient`` gets there from δ = g' − g, in two products. See ``reference.recompose``.

    Raises as ``project``.
    """
    *batch, k = S.shape
    square, d1, d2 = (*batch, k, k), U.shape[-2], Vh.shape[-1]
    check_fit(
        H=(H, square), g=(g, S.shape), K=(K, square), U=(U, (*batch, d1, k)), S=(S, S.shape), Vh=(Vh, (*batch, k, d2))
    )
    return _recompose(H, g, K, U, S, Vh, backend)


def small_svd(A: Tensor, backend: Backend = "auto") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Decompose ``A = U diag(S) Vh`` for many small matrices ``A [.., k, k]``, float32, of any strides.

    "cuda" is one-sided Jacobi (Hestenes, J. SIAM 6, 1958), all matrices in one launch. k is at most 256, and less where
    shared memory is. Small singular values keep the relative accuracy that A allows (Demmel and Veselić, SIAM J. Matrix
    Anal. Appl. 13, 1992). "auto" takes it where it is available and torch.linalg anywhere else.

    Returns:
        ``U [.., k, k]``, ``S [.., k]`` descending, ``Vh [.., k, k]``, U and Vh orthonormal even where S is zero; for a
        symmetric A without negative eigenvalues both hold its eigenvectors. And sweeps ``[..]``, int32: how many it
        took (torch: 1), 0 where they did not suffice, -1 where A holds NaN or Inf and the factors hold NaN.

    Raises:
        TypeError: A is not float32.
        ValueError: A is not square, or the backend cannot take it.
    """
    if A.dtype != torch.float32:
        raise TypeError(f"A must be float32, got {A.dtype}")
    if A.ndim < 2 or A.shape[-1] != A.shape[-2] or not A.shape[-1]:
        raise ValueError(f"A must be [.., k, k], got {tuple(A.shape)}")
    return _small_svd(A, backend)


@torch.library.custom_op("gsr_kernels::project", mutates_args=())
def _project(G: Tensor, U: Tensor, Vh: Tensor, backend: str) -> Tensor:
    shape = U.shape[-2], Vh.shape[-1], U.shape[-1]
    return implementation("project", backend, G.device, G.dtype, U.dtype, shape)(G, U, Vh)


@torch.library.custom_op("gsr_kernels::skew", mutates_args=())
def _skew(N: Tensor, S: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return implementation("skew", backend, N.device, N.dtype)(N, S)


@torch.library.custom_op("gsr_kernels::rescale", mutates_args=())
def _rescale(g: Tensor, S: Tensor, rho: float, floor: float, backend: str) -> Tensor:
    return implementation("rescale", backend, g.device, g.dtype)(g, S, rho, floor)


@torch.library.custom_op("gsr_kernels::recompose", mutates_args=())
def _recompose(H: Tensor, g: Tensor, K: Tensor, U: Tensor, S: Tensor, Vh: Tensor, backend: str) -> Tensor:
    shape = U.shape[-2], Vh.shape[-1], U.shape[-1]
    return implementation("recompose", backend, U.device, U.dtype, U.dtype, shape)(H, g, K, U, S, Vh)


@torch.library.custom_op("gsr_kernels::small_svd", mutates_args=())
def _small_svd(A: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    k = A.shape[-1]
    return implementation("small_svd", backend, A.device, shape=(k, k, k))(A)


# empty results, for tracing
_project.register_fake(
    lambda G, U, Vh, backend: G.new_empty(
        (*U.shape[:-2], U.shape[-1], U.shape[-1]), dtype=torch.promote_types(G.dtype, U.dtype)
    )
)
_skew.register_fake(lambda N, S, backend: (N.new_empty(N.shape), N.new_empty(N.shape)))
_rescale.register_fake(lambda g, *others: g.new_empty(g.shape))
_recompose.register_fake(lambda H, g, K, U, S, Vh, backend: U.new_empty((*U.shape[:-1], Vh.shape[-1])))


@_small_svd.register_fake
def _(A: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sweeps = A.new_empty(A.shape[:-2], dtype=torch.int32)
    return A.new_empty(A.shape), A.new_empty(A.shape[:-1]), A.new_empty(A.shape), sweeps
