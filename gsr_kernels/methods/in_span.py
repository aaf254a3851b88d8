"""The weight kept in the span of its basis, whatever the optimizer does."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.methods.base import Method, State
from gsr_kernels.methods.projections import operands


@dataclass(frozen=True)
class InSpan(Method):
    """``W ← U Uᵀ W V Vᵀ`` after each step, for use after a method that drops what its basis does not span.

    An adaptive optimizer makes steps that leave the span of its gradients. W itself lies in the span of its whole
    basis, so nothing of it is lost; square weights are left alone.

    Raises ValueError in attach() for a truncated basis, whose span does not hold W.
    """

    def prepare(self, name: str, W: Tensor, basis: SpectralBasis) -> State:
        """Nothing is kept."""
        if not basis.full_rank:
            raise ValueError(f"rank must be None with InSpan: the truncated basis of {name} does not span it")
        return {}

    def constrain(self, W: Tensor, basis: SpectralBasis, state: State) -> None:
        """See the class."""
        d1, d2 = basis.shape[-2:]
        wide, U, Vh = operands(W, basis)
        outside = wide
        # twice: the rounding of U or Vh, which once leaves in the span, would add up from step to step
        for _ in range(2):
            if d1 > d2:
                outside = outside - U @ (U.mT @ outside)
            elif d1 < d2:
                outside = outside - (outside @ Vh.mT) @ Vh
        if d1 != d2:
            W.copy_(wide - outside)
