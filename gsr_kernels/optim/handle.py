"""What attach() returns: the live connection between a method and an optimizer."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from gsr_kernels.basis import SpectralBasis, fingerprint, save_bases, split_heads
from gsr_kernels.methods import Method
from gsr_kernels.methods.base import Heads, State
from gsr_kernels.optim.metrics import Measures, measure_after, measure_before
from gsr_kernels.optim.targets import Target
from gsr_kernels.reference import FLOOR

# which optimizers have a handle, so that none is given two
attached: weakref.WeakKeyDictionary[Optimizer, Handle] = weakref.WeakKeyDictionary()


@dataclass
class Weight:
    """One matrix under the method; ``place`` finds it in the optimizer's groups, since wrappers swap parameters."""

    name: str
    place: tuple[int, int]
    rank: int | None
    heads: Heads
    basis: SpectralBasis
    state: State
    # on the weight's device until they are asked for
    skipped: Tensor
    measures: Measures = field(default_factory=dict)
    steps: int = 0


class Handle:
    """A method at work on an optimizer; ``attach`` makes it. ``print(handle)`` lists what is matched and skipped."""

    def __init__(
        self,
        optimizer: Optimizer,
        method: Method,
        weights: list[Weight],
        found: list[Target],
        coverage: float,
        nonfinite: str,
        record_every: int,
    ) -> None:
        self.method = method
        self.weights = weights
        self.coverage = coverage
        self._optimizer = optimizer
        self._found = found
        self._nonfinite = nonfinite
        self._record_every = record_every
        self._steps = 0
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        attached[optimizer] = self

    def refresh(self, reset_moments: bool = False) -> None:
        """Begins a new task: new bases of the weights as they are now, new method state.

        The optimizer's moments stay, unless ``reset_moments``. If a weight cannot be decomposed nothing is changed.
        """
        parameters = {weight.name: self._parameter(weight) for weight in self.weights}
        ranks = {weight.name: weight.rank for weight in self.weights}
        heads = {weight.name: weight.heads for weight in self.weights}
        bases = decompose(self.method, parameters, ranks, heads)
        states = prepare(self.method, parameters, bases)
        for weight in self.weights:
            weight.basis, weight.state = bases[weight.name], states[weight.name]
        if reset_moments:
            self._optimizer.state.clear()

    def metrics(self) -> dict[str, dict[str, float]]:
        """Of each weight, by name: counts since attach(), and what the last recorded step measured.

        ``skipped_nonfinite`` (matrices left as they came), ``inactive_directions`` (σ <= 1e-6 σ_max); with
        ``record_every``: ``outside_span`` and ``on_diagonal`` (shares of the gradient's energy), ``norm_ratio``
        (‖G'‖/‖G‖), ``positive`` and ``negative`` (signs of the diagonal of N).
        """
        records = {}
        for weight in self.weights:
            S = weight.basis.S
            active = (FLOOR * S.amax(-1, keepdim=True) < S).sum()
            values = {
                "skipped_nonfinite": weight.skipped,
                "inactive_directions": S.numel() - active,
                **weight.measures,
            }
            records[weight.name] = {key: value.item() for key, value in values.items()}
        return records

    def save_bases(self, path: str | os.PathLike[str]) -> None:
        """Writes the bases to a file that ``attach(bases=path)`` reads; it appears whole or not at all."""
        save_bases(path, {weight.name: weight.basis for weight in self.weights})

    def remove(self) -> None:
        """Takes the method off the optimizer, which then steps as if it had never been there."""
        for hook in self._hooks:
            hook.remove()
        attached.pop(self._optimizer, None)

    def doctor(self) -> list[str]:
        """What is silently wrong, each finding also given as a warning; runs by itself after the first step."""
        idle = [weight.name for weight in self.weights if not weight.steps]
        findings = []
        if not self._steps:
            findings.append(
                "no step of the optimizer has reached the method: training steps another optimizer than the one that "
                "attach() was given, or none yet"
            )
        elif idle:
            findings.append(
                f"{len(idle)} of {len(self.weights)} matched weights have had no gradient at any step "
                f"({', '.join(idle[:5])}{', …' if len(idle) > 5 else ''}): they are frozen, unused, or gradients are "
                "set to None before optimizer.step()"
            )
        for finding in findings:
            warnings.warn(f"gsr_kernels: {finding}", stacklevel=2)
        return findings

    def __str__(self) -> str:
        weights = {weight.name: weight for weight in self.weights}
        lines = [self.summary()]
        for target in self._found:
            weight = weights.get(target.name)
            if weight is None:
                note = f"skipped: {target.reason}"
            else:
                basis = weight.basis
                note = f"rank {basis.rank} of {min(basis.shape[-2:])}"
                note += f", {basis.shape[:-2].numel()} matrices" if basis.S.ndim > 1 else ""
            lines.append(f"  {target.name:<48} {'x'.join(map(str, target.parameter.shape)):>14}  {note}")
        return "\n".join(lines)

    def summary(self) -> str:
        """One line: the method, the matrices, the share of trainable weights that they are."""
        size = sum(weight.basis.nbytes for weight in self.weights) / 2**20
        return (
            f"{self.method} acts on {len(self.weights)} weights, {self.coverage:.1%} of the trainable parameters "
            f"(bases: {size:.1f} MiB)"
        )

    def _before_step(self, optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._transform()
            return None

        # the hook fires before the closure has made the gradients: act when it has
        def closure_then_transform() -> Any:
            loss = closure()
            self._transform()
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": closure_then_transform}
        return (args[0], closure_then_transform, *args[2:]), kwargs

    @torch.no_grad()
    def _transform(self) -> None:
        record = self._record_every and self._steps % self._record_every == 0
        self._steps += 1
        live, gradients, matrices = [], [], []
        for weight in self.weights:
            parameter = self._parameter(weight)
            if parameter.grad is not None:
                _follow(weight, parameter.grad)
                live.append(weight)
                gradients.append(weight.basis.split(parameter.grad))
                matrices.append(weight.basis.split(parameter))

        before = [measure_before(G, weight.basis) for G, weight in zip(gradients, live)] if record else []
        bases, states = [weight.basis for weight in live], [weight.state for weight in live]
        # a fused optimizer divides by the scale of a GradScaler inside its step
        scale = getattr(self._optimizer, "grad_scale", None)
        finite = self.method.transform(gradients, matrices, bases, states, scale)
        for weight, flags in zip(live, finite):
            weight.steps += 1
            weight.skipped += (~flags).sum()
            if self._nonfinite == "error" and not flags.all():
                raise FloatingPointError(f"the gradient of {weight.name} holds NaN or Inf; no weight was changed")
        for weight, G, measured in zip(live, gradients, before):
            weight.measures = measure_after(G, measured)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.method.constrains:
            for weight in self.weights:
                self.method.constrain(weight.basis.split(self._parameter(weight)), weight.basis, weight.state)
        if self._steps == 1:
            self.doctor()

    def _parameter(self, weight: Weight) -> nn.Parameter:
        group, index = weight.place
        parameter = self._optimizer.param_groups[group]["params"][index]
        if parameter.shape != weight.basis.weight_shape:
            raise RuntimeError(
                f"the optimizer's parameter groups no longer hold {weight.name} where attach() found it: "
                "handle.remove(), then attach() again"
            )
        return parameter


def decompose(
    method: Method,
    parameters: Mapping[str, Tensor],
    ranks: Mapping[str, int | None],
    heads: Mapping[str, Heads],
    stored: Mapping[str, SpectralBasis] | None = None,
) -> dict[str, SpectralBasis]:
    """The basis of every parameter: the stored one where it fits, else a new one, under a progress bar."""
    bases = {}
    for name, parameter in tqdm(parameters.items(), "singular bases", unit="weight", leave=False, disable=None):
        kept = (stored or {}).get(name)
        if kept is not None and _fits(kept, parameter, ranks[name], heads[name]):
            bases[name] = kept.to(parameter.device)
            continue
        try:
            bases[name] = method.decompose(name, parameter.detach(), ranks[name], heads[name])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return bases


def prepare(method: Method, parameters: Mapping[str, Tensor], bases: Mapping[str, SpectralBasis]) -> dict[str, State]:
    """What the method keeps for every parameter."""
    with torch.no_grad():
        return {
            name: method.prepare(name, bases[name].split(parameter), bases[name])
            for name, parameter in parameters.items()
        }


def _fits(basis: SpectralBasis, parameter: Tensor, rank: int | None, heads: Heads) -> bool:
    matrices, head_dim = split_heads(parameter, heads)
    alike = basis.shape == matrices.shape and basis.head_dim == head_dim
    wanted = min(basis.shape[-2:]) if rank is None else rank
    return alike and basis.rank == wanted and basis.fingerprint == fingerprint(parameter)


def _follow(weight: Weight, gradient: Tensor) -> None:
    """Moves what is kept of a weight to where its gradient is: the model was moved after attach()."""
    if gradient.layout != torch.strided:
        raise TypeError(f"the gradient of {weight.name} is sparse: build the layer with sparse=False")
    if gradient.device != weight.basis.U.device:
        weight.basis = weight.basis.to(gradient.device)
        weight.state = {key: value.to(gradient.device) for key, value in weight.state.items()}
        weight.skipped = weight.skipped.to(gradient.device)
