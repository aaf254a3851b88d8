"""The operators: what they take, what they refuse, and which backend computes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, overload

import torch
from torch import Tensor

from gsr_kernels.basis import SpectralBasis

BACKENDS = ("torch",)
OUT_OF_SPAN = ("drop", "keep")


def implementation(name: str, backend: str = "auto") -> Callable[..., Any]:
    """The function ``name`` of a backend, imported when it is first asked for."""
    if backend == "auto":
        backend = "torch"
    if backend not in BACKENDS:
        raise ValueError(f"backend must be auto or one of {', '.join(BACKENDS)}, got {backend!r}")
    return getattr(import_module(f"gsr_kernels.backends.{backend}.{name}"), name)


def check_rho(rho: float) -> float:
    """``rho`` as a float in [0, 1]; anything else is a ValueError."""
    if not (math.isfinite(rho) and 0 <= rho <= 1):
        raise ValueError(f"rho must be a finite number in [0, 1], got {rho}")
    return float(rho)


def check_out_of_span(out_of_span: str) -> str:
    """``out_of_span`` if it is one of ``OUT_OF_SPAN``; anything else is a ValueError."""
    if out_of_span not in OUT_OF_SPAN:
        raise ValueError(f"out_of_span must be None, 'drop' or 'keep', got {out_of_span!r}")
    return out_of_span


@overload
def rescale_gradient(
    G: Tensor,
    basis: SpectralBasis,
    rho: float,
    out_of_span: str | None = None,
    backend: str = "auto",
    out: Tensor | None = None,
) -> Tensor: ...
@overload
def rescale_gradient(
    G: Sequence[Tensor],
    basis: Sequence[SpectralBasis],
    rho: float,
    out_of_span: str | None = None,
    backend: str = "auto",
    out: Sequence[Tensor] | None = None,
) -> list[Tensor]: ...
def rescale_gradient(G, basis, rho, out_of_span=None, backend="auto", out=None):  # type: ignore[no-untyped-def]
    """Gradient Spectrum Rescaling: ``G' = U Uᵀ G V Vᵀ + U diag(g' − g) Vh`` (paper, equations 2, 3, 7, 8).

    Args:
        G: gradient of the shape of the basis's weight, ``[.., d1, d2]``, any real float dtype; or a list of them.
        basis: the weight's SpectralBasis on G's device; a list of the same length where G is a list.
        rho: 0 leaves the singular components as they are, 1 shares them out anew inside each sign group.
        out_of_span: "drop" (the paper) loses what the basis does not span, "keep" leaves it as it is. By default
            "drop" for a full-rank basis and "keep" for a truncated one.
        backend: "auto" or "torch".
        out: where to write G', of G's shape and dtype; ``out=G`` works in place.

    Returns:
        G', or the list of them. A matrix with a NaN or Inf in it comes back as it came.

    Raises:
        TypeError: G is not a real floating-point tensor.
        ValueError: shapes, devices or lengths differ; rho, out_of_span or backend out of range. Nothing was written.
    """
    single = isinstance(G, Tensor)
    gradients, bases = ([G], [basis]) if single else (list(G), list(basis))
    outs = [None] * len(gradients) if out is None else [out] if single else list(out)
    if not len(gradients) == len(bases) == len(outs):
        raise ValueError(f"lists differ in length: {len(gradients)} G, {len(bases)} basis, {len(outs)} out")
    check_rho(rho)
    if out_of_span is not None:
        check_out_of_span(out_of_span)
    for gradient, one, target in zip(gradients, bases, outs):
        _check(gradient, one, target)
    # torch.compile sees an operator; in eager its body is called directly: the boundary costs tens of microseconds
    compute = _rescale_gradient if torch.compiler.is_compiling() else implementation("rescale_gradient", backend)

    results = []
    for gradient, one, target in zip(gradients, bases, outs):
        mode = out_of_span or ("drop" if one.full_rank else "keep")
        result = torch.empty_like(gradient) if target is None else target
        compute(one.split(gradient), one.U, one.S, one.Vh, rho, mode, one.split(result))
        results.append(result)
    return results[0] if single else results


def _check(G: Tensor, basis: SpectralBasis, out: Tensor | None) -> None:
    if not G.is_floating_point():
        raise TypeError(f"G must be a real floating-point tensor, got {G.dtype}")
    if G.shape != basis.weight_shape:
        raise ValueError(f"G {tuple(G.shape)} and basis {tuple(basis.weight_shape)} must have the same shape")
    if G.device != basis.U.device:
        raise ValueError(f"G is on {G.device}, basis on {basis.U.device}: move it with basis.to(G.device)")
    if out is not None and (out.shape != G.shape or out.dtype != G.dtype or out.device != G.device):
        raise ValueError("out must have the shape, dtype and device of G")


@torch.library.custom_op("gsr_kernels::rescale_gradient", mutates_args=("out",))
def _rescale_gradient(G: Tensor, U: Tensor, S: Tensor, Vh: Tensor, rho: float, out_of_span: str, out: Tensor) -> None:
    implementation("rescale_gradient")(G, U, S, Vh, rho, out_of_span, out)


@_rescale_gradient.register_fake
def _(G: Tensor, U: Tensor, S: Tensor, Vh: Tensor, rho: float, out_of_span: str, out: Tensor) -> None:
    return None
