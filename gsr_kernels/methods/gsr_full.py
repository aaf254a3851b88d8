"""Every entry of the projected gradient rescaled, not its diagonal alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gsr_kernels.backends.torch.products import product
from gsr_kernels.basis import SpectralBasis
from gsr_kernels.checks import OutOfSpan, check_number, check_out_of_span
from gsr_kernels.methods.base import Method, State
from gsr_kernels.methods.projections import block, operands

# smaller singular values count as this share of the largest: 1 / sigma would let them take it all
FLOOR = 1e-3


@dataclass(frozen=True)
class GSRFull(Method):
    """Minor directions first, for all of ``N = Uᵀ G V``:

        N'_ij = c w_i w_j N_ij        w_i = (mean σ / σ_i)^(p/2)        σ_i at least 1e-3 σ_max

    with c such that ``‖N'‖ = ‖N‖``. It is a two-sided preconditioner fixed for the task, of ``P_L = U diag(w) Uᵀ``
    and ``P_R = V diag(w) Vh``. A square weight takes two products, ``P_L G P_R``. A tall one takes three,
    ``U diag(w) ((Uᵀ G) P_R)``, of which the middle one is small. A wide one is its mirror. The norms that c needs are
    those of the intermediate products, since U and V keep norms. P_L and P_R take the memory of U and Vh again.

    Args:
        p: how strongly, at least 0; 0 is the projection on the span.
        out_of_span: "drop" loses what U and Vh do not span, "keep" leaves it: ``G + U (N' − N) Vh``. None: "drop"
            where attach() is given no rank, else "keep", for all weights.

    Raises ValueError where either is out of range.
    """

    p: float = 1.0
    out_of_span: OutOfSpan | None = None

    def __post_init__(self) -> None:
        check_number("p", self.p, 0)
        check_out_of_span(self.out_of_span)

    def prepare(self, name: str, W: Tensor, basis: SpectralBasis) -> State:
        """Return w, and P_L or P_R of each side that the basis fills."""
        sigma = basis.S.clamp_min(FLOOR * basis.S.amax(-1, keepdim=True))
        # a zero weight has no minor directions
        w = torch.where(sigma > 0, (sigma.mean(-1, keepdim=True) / sigma) ** (self.p / 2), 1)
        state = {"w": w}
        for side, factor in (("left", basis.U), ("right", basis.Vh.mT)):
            if factor.shape[-2] == factor.shape[-1]:
                wide = factor.to(w.dtype)
                state[side] = product(wide * w.unsqueeze(-2), wide.mT).to(factor.dtype)
        return state

    def gradient(self, G: Tensor, W: Tensor, basis: SpectralBasis, state: State) -> Tensor:
        wide, U, Vh = operands(G, basis)
        w = state["w"].to(wide.dtype)
        if "left" in state and "right" in state:
            rescaled = product(product(state["left"].to(wide.dtype), wide), state["right"].to(wide.dtype))
            return rescaled * _ratio(wide, rescaled)
        keep = self.out_of_span == "keep"
        if "right" in state:
            return _tall(wide, U, w, state["right"].to(wide.dtype), keep)
        if "left" in state:
            return _tall(wide.mT, Vh.mT, w, state["left"].to(wide.dtype), keep).mT
        N = block(wide, U, Vh)
        rescaled = N * w.unsqueeze(-1) * w.unsqueeze(-2)
        rescaled = rescaled * _ratio(N, rescaled)
        inside = product(U, product(rescaled - N if keep else rescaled, Vh))
        return wide + inside if keep else inside


def _tall(G: Tensor, U: Tensor, w: Tensor, right: Tensor, keep: bool) -> Tensor:
    """Rescale a weight whose V is square: ``Uᵀ G`` is N in another basis of the same space, and has its norm."""
    A = product(U.mT, G)
    rescaled = product(A, right) * w.unsqueeze(-1)
    rescaled = rescaled * _ratio(A, rescaled)
    return G + product(U, rescaled - A) if keep else product(U, rescaled)


def _ratio(before: Tensor, after: Tensor) -> Tensor:
    """Return c of each matrix ``[.., 1, 1]``. Squares are summed in float64: those of 1e25 overflow float32."""
    norms = [torch.linalg.vector_norm(one, dim=(-2, -1), keepdim=True, dtype=torch.float64) for one in (before, after)]
    return torch.where(norms[1] > 0, norms[0] / norms[1], 1).to(before.dtype)
