"""What the kernels move of an optimizer's weights, inside its step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gsr_kernels.methods import GSR
from gsr_kernels.methods.gsr import steps
from gsr_kernels.ops import backend_for
from gsr_kernels.optim.transform import Live
from gsr_kernels.weight import Weight

if TYPE_CHECKING:
    from gsr_kernels.backends.triton.moments import Moments, Settings

Groups = Sequence[Mapping[str, Any]]
State = Mapping[str, Tensor]


class InKernels:
    """The weights of one GSRAdamW that the kernels serve: ``take`` finds them, ``run`` moves them.

    Attributes:
        moved: the parameters that this step has moved.
    """

    def __init__(self) -> None:
        self.moved: set[Tensor] = set()
        self._taken: list[tuple[Weight, Tensor, Moments]] = []
        self._settings: dict[torch.device, Settings] = {}
        # of a weight, what was asked of the kernels and their answer: the same at nearly every step
        self._known: dict[Tensor, tuple[tuple[Any, ...], Moments | None]] = {}

    def forget(self) -> None:
        """Lets go of the bases and moments of the last step."""
        self._known.clear()

    def take(self, live: Live, groups: Groups, states: Sequence[State]) -> set[Tensor]:
        """Those of ``(weight, p, G)`` that ``run`` will move."""
        self.moved.clear()
        found = [(weight, p, self._answer(weight, p, G, groups, state)) for (weight, p, G), state in zip(live, states)]
        self._taken = [(weight, p, moments) for weight, p, moments in found if moments is not None]
        return {p for _, p, _ in self._taken}

    def run(self, groups: Groups, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Moves what was taken, by the gradients that it has now."""
        taken = [one for one in self._taken if one[1].grad is not None]
        self._taken = []
        together: dict[tuple[GSR, torch.device], list[tuple[Weight, Tensor, Moments]]] = {}
        for one in taken:
            together.setdefault((one[0].method, one[1].device), []).append(one)  # type: ignore[arg-type]
        for (method, device), chosen in together.items():
            settings = self._settings_on(device, len(groups))
            settings.set(groups, grad_scale, found_inf)
            weights, parameters, moments = zip(*chosen)
            steps(method).update([p.grad for p in parameters], [one.basis for one in weights], moments, settings)
            for weight in weights:
                weight.steps += 1
            self.moved.update(parameters)

    def _answer(self, weight: Weight, p: Tensor, G: Tensor, groups: Groups, state: State) -> Moments | None:
        kept = tuple(state.get(key) for key in ("exp_avg", "exp_avg_sq", "step", "master"))
        maximize = groups[weight.place[0]]["maximize"]
        same = weight.basis, weight.skipped, *kept
        equal = p.dtype, p.stride(), p.device, G.dtype, G.layout, maximize
        known = self._known.get(p)
        if known is None or known[0][1] != equal or any(one is not other for one, other in zip(known[0][0], same)):
            known = self._known[p] = (same, equal), None if maximize else _served(weight, p, G, state)
        return known[1]

    def _settings_on(self, device: torch.device, groups: int) -> Settings:
        from gsr_kernels.backends.triton.moments import Settings

        if device not in self._settings:
            self._settings[device] = Settings(groups, device)
        return self._settings[device]


def _served(weight: Weight, p: Tensor, G: Tensor, state: State) -> Moments | None:
    """What the kernels are given of a weight, or None where they do not serve it: ascent is no business of theirs."""
    # kernels take addresses, and a DTensor has none
    if hasattr(p, "to_local"):
        return None
    # a method with a step of its own is not these kernels'; nor are bases that visit
    method = weight.method
    if not isinstance(method, GSR) or type(method).transform is not GSR.transform:
        return None
    if weight.offloaded or G.layout != torch.strided or not G.device == p.device == weight.skipped.device:
        return None
    m, v, step, master = state["exp_avg"], state["exp_avg_sq"], state["step"], state.get("master")
    written = [one for one in (p, m, v, master) if one is not None]
    if any(one.device != p.device or one.shape != p.shape or not one.is_contiguous() for one in written):
        return None
    if m.dtype != v.dtype or step.dtype != torch.float32 or step.device != p.device:
        return None
    basis = weight.basis
    form = G.device, G.dtype, basis.U.dtype, basis.dims, method.out_of_span or "drop"
    if not G.numel() or backend_for("update", *form)[0] != "triton":
        return None
    from gsr_kernels.backends.triton.moments import Moments

    moved, copy = (p, None) if master is None else (master, p)
    return Moments(moved, m, v, step, weight.skipped, weight.place[0], copy)
