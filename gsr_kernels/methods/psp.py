"""Projection on the minor singular directions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.methods.base import Method, State
from gsr_kernels.methods.projections import complement, keep_block, operands, remove_block

VARIANTS = ("minor_block", "complement", "remove_block")


@dataclass(frozen=True)
class PSP(Method):
    """The gradient on the minor directions alone (Franke et al. 2024). Three projections go by this name:

        minor_block     U_m U_mᵀ G V_m V_mᵀ
        complement      (I − U_h U_hᵀ) G (I − V_h V_hᵀ)
        remove_block    G − U_h U_hᵀ G V_h V_hᵀ

    where m are the last ``⌈k r⌉`` directions, which are trained, and h the others. It is not clear from the paper
    whether its 0.4 is the trained or the protected share: here it is the trained one.

    Args:
        k: the trained share of each weight's r directions, in (0, 1].
        variant: one of ``VARIANTS``.

    Raises ValueError where either is out of range, or where nothing would be protected.
    """

    k: float = 0.4
    variant: str = "minor_block"

    def __post_init__(self) -> None:
        if not 0 < self.k <= 1:
            raise ValueError(f"k must lie in (0, 1], the trained share of each weight's directions, got {self.k}")
        if self.variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {self.variant!r}")
        if self.k == 1 and self.variant != "minor_block":
            raise ValueError(f"k = 1 with variant {self.variant!r} protects nothing: choose k < 1")

    def prepare(self, name: str, W: Tensor, basis: SpectralBasis) -> State:
        """Nothing is kept; a truncated basis has lost the minor directions (ValueError)."""
        if not basis.full_rank:
            raise ValueError(f"rank must be None for PSP: that of {name} cuts off the minor directions")
        return {}

    def gradient(self, G: Tensor, W: Tensor, basis: SpectralBasis, state: State) -> Tensor:
        """See the class."""
        wide, U, Vh = operands(G, basis)
        # 0.7 · 10 is 7, not 8: the rounding of the product is no direction
        major = basis.rank - math.ceil(self.k * basis.rank - 1e-9)
        if self.variant == "minor_block":
            return keep_block(wide, U[..., major:], Vh[..., major:, :])
        project = complement if self.variant == "complement" else remove_block
        return project(wide, U[..., :major], Vh[..., :major, :])
