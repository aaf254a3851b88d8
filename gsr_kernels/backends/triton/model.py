"""GSR's step of a whole model: one plan for what the kernels take, cuBLAS for the rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gsr_kernels.backends.torch.rescale_gradient import rescale_gradient as by_cublas
from gsr_kernels.backends.triton.plan import Plan, served
from gsr_kernels.basis import SpectralBasis


class ModelStep:
    """The step of the weights given at its building, in place; building compiles what it needs, under a progress bar.

    Args:
        bases: of each weight.
        dtypes: of each gradient.
        rho, out_of_span: of all of them, see ``Plan``.
    """

    def __init__(
        self, bases: Sequence[SpectralBasis], dtypes: Sequence[torch.dtype], rho: float, out_of_span: str
    ) -> None:
        self._bases = list(bases)
        self._dtypes = list(dtypes)
        self._rho = rho
        self._out_of_span = out_of_span
        self._planned = [i for i, one in enumerate(zip(bases, dtypes)) if served(*one, out_of_span)]
        self._plan: Plan | None = None
        if self._planned:
            chosen = [self._bases[i] for i in self._planned]
            modes = [out_of_span] * len(chosen)
            self._plan = Plan(chosen, [self._dtypes[i] for i in self._planned], rho, modes)
            self._plan.warmup()

    def fits(self, bases: Sequence[SpectralBasis], dtypes: Sequence[torch.dtype]) -> bool:
        """Whether it was built for these very bases and dtypes."""
        same = len(bases) == len(self._bases) and all(one is other for one, other in zip(bases, self._bases))
        return same and list(dtypes) == self._dtypes

    def run(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Rewrites the gradients; says which matrices were finite, a bool ``[..]`` a weight, until the next step."""
        flags: list[Tensor] = [torch.empty(0)] * len(gradients)
        if self._plan is not None:
            self._plan.run([gradients[i] for i in self._planned])
            for i, finite in zip(self._planned, self._plan.finite):
                flags[i] = finite
        for i in set(range(len(gradients))) - set(self._planned):
            G, basis = gradients[i], self._bases[i]
            g = by_cublas(G, basis.U, basis.S, basis.Vh, self._rho, self._out_of_span, G)
            flags[i] = g.isfinite().all(-1)
        return flags
