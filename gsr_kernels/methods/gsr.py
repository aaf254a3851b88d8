"""Gradient Spectrum Rescaling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.methods.base import Method, State
from gsr_kernels.ops import check_out_of_span, check_rho, implementation


@dataclass(frozen=True)
class GSR(Method):
    """The singular components of the gradient, rescaled inside their sign group (paper, equations 2, 3, 7, 8).

    Args:
        rho: in [0, 1]; 0 leaves the components as they are, 1 shares their energy out by σ alone.
        out_of_span: "drop" (the paper's (8)) loses what U and Vh do not span, "keep" leaves it as it is. None: "drop"
            for whole bases and "keep" for truncated ones, decided once by attach().

    Raises ValueError where either is out of range.
    """

    rho: float
    out_of_span: str | None = None
    # on a GPU, the plan of the last weights seen
    _steps: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_rho(self.rho)
        if self.out_of_span is not None:
            check_out_of_span(self.out_of_span)

    def transform(
        self,
        gradients: Sequence[Tensor],
        weights: Sequence[Tensor],
        bases: Sequence[SpectralBasis],
        states: Sequence[State],
        scale: Tensor | None = None,
    ) -> list[Tensor]:
        """See Method.transform. One non-finite entry anywhere in G makes its g non-finite, so that g alone tells."""
        mode = self.out_of_span or "drop"
        if gradients and gradients[0].device.type == "cuda":
            return self._step_on_gpu(gradients, bases, mode)
        compute = implementation("rescale_gradient")
        flags = []
        for G, basis in zip(gradients, bases):
            g = compute(G, basis.U, basis.S, basis.Vh, self.rho, mode, G)
            flags.append(g.isfinite().all(-1))
        return flags

    def _step_on_gpu(self, gradients: Sequence[Tensor], bases: Sequence[SpectralBasis], mode: str) -> list[Tensor]:
        from gsr_kernels.backends.triton.model import ModelStep

        dtypes = [G.dtype for G in gradients]
        if not (self._steps and self._steps[0].fits(bases, dtypes)):
            self._steps[:] = [ModelStep(bases, dtypes, self.rho, mode)]
        return self._steps[0].run(gradients)
