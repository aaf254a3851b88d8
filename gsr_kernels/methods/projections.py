"""Projections on singular subspaces, and the two methods that are nothing else: PSP and InSpan.

``U [.., d1, k]`` and ``Vh [.., k, d2]`` have orthonormal columns and rows: some of a weight's singular directions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gsr_kernels.backends.torch.products import product, write_product
from gsr_kernels.basis import SpectralBasis
from gsr_kernels.checks import check_choice, check_number
from gsr_kernels.methods.base import Method, State

Variant = Literal["minor_block", "middle", "complement", "remove_block"]


def operands(G: Tensor, basis: SpectralBasis) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(G, U, Vh)`` in the wider dtype of G and the basis, at least float32 on a CPU."""
    dtype = torch.promote_types(G.dtype, basis.U.dtype)
    if G.device.type == "cpu":
        dtype = torch.promote_types(dtype, torch.float32)
    return G.to(dtype), basis.U.to(dtype), basis.Vh.to(dtype)


def block(G: Tensor, U: Tensor, Vh: Tensor) -> Tensor:
    """Return ``Uᵀ G V``, the longer side of G first."""
    tall = G.shape[-2] >= G.shape[-1]
    return product(product(U.mT, G), Vh.mT) if tall else product(U.mT, product(G, Vh.mT))


def spread(N: Tensor, U: Tensor, Vh: Tensor) -> Tensor:
    """Return ``U N Vᵀ``, the longer side of it last."""
    tall = U.shape[-2] >= Vh.shape[-1]
    return product(U, product(N, Vh)) if tall else product(product(U, N), Vh)


def remove_block(
    G: Tensor,
    U: Tensor,
    Vh: Tensor,
    out: Tensor | None = None,
    finite: Tensor | None = None,
    minor: Tensor | None = None,
) -> Tensor:
    """Return ``G − U Uᵀ G V Vᵀ``: everything but the block of these directions.

    Args:
        out: may be G.
        finite: a matrix that is not ``finite [..]`` is returned as it is.
        minor: ``[.., min(d1, d2), m]``, what the directions leave of the shorter side; see ``FEWER``.
    """
    if G.shape[-2] >= G.shape[-1]:
        return _add(G, U, _minus(_inside(product(U.mT, G), Vh, minor), finite), out)
    return _add(G, _minus(_inside(product(G, Vh.mT).mT, U.mT, minor).mT, finite), Vh, out)


def complement(
    G: Tensor,
    U: Tensor,
    Vh: Tensor,
    out: Tensor | None = None,
    finite: Tensor | None = None,
    minor: Tensor | None = None,
) -> Tensor:
    """Return ``(I − U Uᵀ) G (I − V Vᵀ)``, which no column of U and no row of Vh touches; see ``remove_block``."""
    if minor is None:
        left = _add(G, U, _minus(product(U.mT, G), finite), out)
        return _add(left, _minus(product(left, Vh.mT), finite), Vh, left)
    if tall := G.shape[-2] >= G.shape[-1]:
        part = product(G, minor)
        _add(part, U, product(U.mT, part).neg_(), part)
    else:
        part = product(minor.mT, G)
        _add(part, product(part, Vh.mT).neg_(), Vh, part)
    out = torch.empty_like(G) if out is None else out
    if finite is not None:
        part = part.where(finite[..., None, None], 0)
        torch.mul(G, ~finite[..., None, None], out=out)
    left, right = (part, minor.mT) if tall else (minor, part)
    if finite is not None:
        return _add(out, left, right, out)
    write_product(left, right, out)
    return out


def _inside(A: Tensor, Vh: Tensor, minor: Tensor | None) -> Tensor:
    """Return ``A V Vᵀ``, or ``A − A V_m V_mᵀ``, which is the same, in A."""
    return product(product(A, Vh.mT), Vh) if minor is None else _add(A, product(A, minor).neg_(), minor.mT, A)


def _minus(N: Tensor, finite: Tensor | None) -> Tensor:
    """Return ``−N``, of a matrix that is not finite zeros."""
    return N.neg_() if finite is None else N.neg_().where(finite[..., None, None], 0)


def _add(G: Tensor, A: Tensor, B: Tensor, out: Tensor | None) -> Tensor:
    """Return ``G + A B`` without a tensor for the product."""
    out = torch.empty_like(G) if out is None else out
    if G.ndim > 3:
        return torch.add(G, product(A, B), out=out)
    write_product(A, B, out, G)
    return out


# by the names of variants: what leaves protected directions alone
PROTECTING = {"remove_block": remove_block, "complement": complement}
# the share of the shorter side's directions from which on those that they leave take fewer products, by their FLOP
FEWER = {"remove_block": 1 / 2, "complement": math.sqrt(2) - 1}


@dataclass(frozen=True)
class PSP(Method):
    """The gradient on some singular directions alone (Franke, Hefenbrock and Hutter 2024). Four projections:

        minor_block     U_m U_mᵀ G V_m V_mᵀ                  as GSR's paper describes it
        middle          the same of the middle directions    as the abstract on iclr.cc has it
        complement      (I − U_h U_hᵀ) G (I − V_h V_hᵀ)      what public code of OSF trains
        remove_block    G − U_h U_hᵀ G V_h V_hᵀ              the equation of OSF's paper

    where m are the last ``⌈k r⌉`` directions, or as many in the middle, which are trained, and h the others. The
    abstract on iclr.cc protects "the high and low-magnitude directions", that on OpenReview "the highest" alone. It is
    not clear whether 0.4 is the trained or the protected share: here it is the trained one.

    Args:
        k: the trained share of each weight's r directions, in (0, 1].
        variant: one of the four.

    Raises ValueError where either is out of range, or where nothing would be protected.
    """

    # a truncated basis has lost the minor directions
    truncated = False

    k: float = 0.4
    variant: Variant = "minor_block"

    def __post_init__(self) -> None:
        check_number("k", self.k, 0, 1, above=True)
        check_choice("variant", self.variant, Variant)
        if self.k == 1 and self.variant in PROTECTING:
            raise ValueError(f"k = 1 with variant {self.variant!r} protects nothing: choose k < 1")

    def gradient(self, G: Tensor, W: Tensor, basis: SpectralBasis, state: State) -> Tensor:
        wide, U, Vh = operands(G, basis)
        # 0.7 · 10 is 7, not 8: the rounding of the product is no direction
        trained = math.ceil(self.k * basis.rank - 1e-9)
        major = basis.rank - trained
        if self.variant in PROTECTING:
            return PROTECTING[self.variant](wide, U[..., :major], Vh[..., :major, :])
        start = major // 2 if self.variant == "middle" else major
        U, Vh = U[..., start : start + trained], Vh[..., start : start + trained, :]
        return spread(block(wide, U, Vh), U, Vh)


@dataclass(frozen=True)
class InSpan(Method):
    """``W ← U Uᵀ W V Vᵀ`` after each step, for use after a method that drops what its basis does not span.

    An adaptive optimizer makes steps that leave the span of its gradients. W itself is in the span of its whole
    basis, so nothing of it is lost; square weights are left alone.

    Raises ValueError in attach() for a truncated basis, whose span does not hold W.
    """

    truncated = False

    def constrain(self, W: Tensor, basis: SpectralBasis, state: State) -> None:
        d1, d2 = basis.shape[-2:]
        wide, U, Vh = operands(W, basis)
        outside = wide
        # twice: the rounding of U or Vh, which once leaves in the span, would add up from step to step
        for _ in range(2):
            if d1 > d2:
                outside = outside - product(U, product(U.mT, outside))
            elif d1 < d2:
                outside = outside - product(product(outside, Vh.mT), Vh)
        if d1 != d2:
            W.copy_(wide - outside)
