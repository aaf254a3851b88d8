"""The weights of GSRAdamW that the kernels update, rescaling and AdamW in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gsr_kernels.methods import GSR
from gsr_kernels.methods.gsr import steps
from gsr_kernels.ops import backend_for
from gsr_kernels.optim.step import Live
from gsr_kernels.weight import Weight

if TYPE_CHECKING:
    from gsr_kernels.backends.triton.moments import Moments, Settings

Groups = Sequence[Mapping[str, Any]]
State = Mapping[str, Tensor]

# the weights of one method on one device, with their parameters and moments
Launch = tuple[GSR, torch.device, str, list[Weight], list[Tensor], "list[Moments]"]


class FusedStep:
    """``plan`` finds what the kernels update, ``run`` updates it."""

    def __init__(self) -> None:
        self._fused: set[int] = set()
        self._launches: list[Launch] = []
        self._settings: dict[torch.device, Settings] = {}
        # what the plan was made for: the same at nearly every step
        self._objects: list[object] = []
        self._asked: list[object] = []

    def plan(self, live: Live, groups: Groups, states: Sequence[State]) -> set[int]:
        """Return the ids of the parameters that ``run`` will update."""
        asked: list[object] = [group["maximize"] for group in groups]
        objects: list[object] = []
        for (weight, G), state in zip(live, states):
            p = weight.parameter
            asked.append((p.dtype, p.stride(), G.dtype, G.layout, G.device))
            objects += weight, weight.basis, weight.skipped, p, state["exp_avg"], state["exp_avg_sq"], state["step"]
            objects.append(state.get("master"))
        same = asked == self._asked and len(objects) == len(self._objects)
        if not same or not all(map(is_, objects, self._objects)):
            self._fused, self._launches = set(), []
            together: dict[tuple[GSR, torch.device, str], Launch] = {}
            for (weight, G), state in zip(live, states):
                p = weight.parameter
                backend = "torch" if groups[weight.place[0]]["maximize"] else _backend(weight, p, G, state)
                if backend != "torch":
                    method: GSR = weight.method  # type: ignore[assignment]
                    key = method, p.device, backend
                    *_, weights, parameters, moments = together.setdefault(key, (*key, [], [], []))
                    weights.append(weight)
                    parameters.append(p)
                    moments.append(_moments(weight, p, state))
                    self._fused.add(id(p))
            self._launches = list(together.values())
            self._asked, self._objects = asked, objects
        return self._fused

    def run(self, groups: Groups, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Update what was planned, by the gradients that it has now."""
        for method, device, backend, weights, parameters, moments in self._launches:
            if device not in self._settings:
                from gsr_kernels.backends.triton.moments import Settings

                self._settings[device] = Settings(len(groups), device)
            settings = self._settings[device]
            settings.set(groups, grad_scale, found_inf)
            gradients: list[Any] = [p.grad for p in parameters]
            steps(method, backend).update(gradients, [weight.basis for weight in weights], moments, settings)
            for weight in weights:
                weight.steps += 1


def _backend(weight: Weight, p: Tensor, G: Tensor, state: State) -> str:
    """Return who updates a weight: "torch" where the kernels do not support it."""
    # kernels take addresses, and a DTensor has none
    if hasattr(p, "to_local"):
        return "torch"
    # a method with a step of its own is not these kernels'; nor are bases that visit
    method = weight.method
    if not isinstance(method, GSR) or type(method).transform is not GSR.transform:
        return "torch"
    if weight.offloaded or G.layout != torch.strided or not G.device == p.device == weight.skipped.device:
        return "torch"
    m, v, step = state["exp_avg"], state["exp_avg_sq"], state["step"]
    written = [one for one in (p, m, v, state.get("master")) if one is not None]
    if any(one.device != p.device or one.shape != p.shape or not one.is_contiguous() for one in written):
        return "torch"
    if m.dtype != v.dtype or step.dtype != torch.float32 or step.device != p.device or not G.numel():
        return "torch"
    basis = weight.basis
    return backend_for("update", G.device, G.dtype, basis.U.dtype, basis.dims, method.out_of_span or "drop")[0]


def _moments(weight: Weight, p: Tensor, state: State) -> Moments:
    from gsr_kernels.backends.triton.moments import Moments

    master = state.get("master")
    moved, copy = (p, None) if master is None else (master, p)
    kept = moved, state["exp_avg"], state["exp_avg_sq"], state["step"]
    return Moments(*kept, weight.skipped, weight.place[0], copy)
