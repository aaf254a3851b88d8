"""Plans of GSR's steps, kept from step to step."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from gsr_kernels.backends.triton.cublas_plan import CublasPlan
from gsr_kernels.backends.triton.cutlass_plan import CutlassPlan
from gsr_kernels.backends.triton.forms import Form, Update, kind
from gsr_kernels.backends.triton.moments import Moments, Settings
from gsr_kernels.backends.triton.plan import Plan
from gsr_kernels.backends.triton.tma_plan import TmaPlan
from gsr_kernels.basis import SpectralBasis

# the plans that one method keeps: all weights, those that had a gradient, groups that visit from host memory
KEPT = 8

_compiled: set[tuple[torch.device, str, Form]] = set()


def plan_class(backend: str) -> type[Plan]:
    """Return the plan of a backend, one of ``choice.WAYS`` but torch."""
    return {"triton": Plan, "cublas": CublasPlan, "tma": TmaPlan, "cutlass": CutlassPlan}[backend]


class Steps:
    """The steps of one method, in place; a new plan compiles what it needs, under a progress bar.

    A plan is kept for the weights' kinds, not for the weights: bases that were taken anew, or copied from host memory,
    are new addresses in it. It keeps no basis alive. The ``KEPT`` used last are kept; more groups of offloaded bases
    than these are planned anew at each step.

    Args:
        rho, out_of_span: of all weights, see ``Plan``.
        backend: see ``plan_class``.
    """

    def __init__(self, rho: float, out_of_span: str, backend: str = "triton") -> None:
        self._backend = backend
        self._rho = rho
        self._out_of_span = out_of_span
        # the one used last is the last, and what it was used for
        self._plans: dict[Hashable, Plan] = {}
        self._dtypes: list[Hashable] = []
        self._bases: list[weakref.ref[SpectralBasis]] = []
        # those whose memory a CUDA graph works in: theirs to the end, with what they read and write
        self._captured: list[tuple[Plan, Any]] = []

    def run(self, gradients: Sequence[Tensor], bases: Sequence[SpectralBasis]) -> list[Tensor]:
        """Rewrite the gradients of weights on one device, which ``backend_for`` gave to Triton.

        Returns of each weight which matrices were finite, a bool ``[..]``, until the next step.
        """
        plan = self._plan(bases, [G.dtype for G in gradients])
        plan.run(gradients, bases=bases)
        if plan.captured:
            self._set_apart(plan, list(bases))
        return plan.finite

    def update(
        self,
        gradients: Sequence[Tensor],
        bases: Sequence[SpectralBasis],
        moments: Sequence[Moments],
        settings: Settings,
    ) -> None:
        """AdamW's step of weights on one device that the kernels serve, see ``Plan.update``."""
        plan = self._plan(bases, [G.dtype for G in gradients], [one.update for one in moments])
        plan.update(gradients, moments, settings, bases=bases)
        if plan.captured:
            self._set_apart(plan, (bases, moments, settings))

    def _plan(
        self,
        bases: Sequence[SpectralBasis],
        dtypes: Sequence[torch.dtype],
        updates: Sequence[Update] | None = None,
    ) -> Plan:
        wanted = [*dtypes, *(updates or ())]
        if wanted == self._dtypes and all(one() is basis for one, basis in zip(self._bases, bases)):
            return next(reversed(self._plans.values()))
        key = (*map(kind, bases), *wanted)
        plan = self._plans.pop(key, None)
        if plan is None:
            plan = plan_class(self._backend)(
                bases, dtypes, self._rho, [self._out_of_span] * len(bases), updates=updates
            )
            # the weights hold their bases: a plan would keep them past their time
            plan.bases = []
            needed = {(plan.device, self._backend, form) for form in plan.forms}
            if not needed <= _compiled:
                plan.warmup()
                _compiled.update(needed)
            for old in list(self._plans)[: max(0, len(self._plans) + 1 - KEPT)]:
                del self._plans[old]
        self._plans[key] = plan
        self._dtypes, self._bases = wanted, [weakref.ref(basis) for basis in bases]
        return plan

    def _set_apart(self, plan: Plan, held: Any) -> None:
        """Leave a captured plan to its graph: eager steps, whose gradients move, get another."""
        self._captured.append((plan, held))
        self._plans = {key: one for key, one in self._plans.items() if one is not plan}
        self._dtypes, self._bases = [], []
