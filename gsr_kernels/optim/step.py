"""The method's part of an optimizer step, called by the hooks of ``attach()`` and by ``GSRAdamW.step()``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.distributed.agreement import all_ranks_agree
from gsr_kernels.distributed.layout import Layout
from gsr_kernels.distributed.step import ShardedStep
from gsr_kernels.methods import Method
from gsr_kernels.methods.contract import check_nothing
from gsr_kernels.offload import visits
from gsr_kernels.optim.bases import decompose, prepare
from gsr_kernels.optim.metrics import measure_after, measure_before
from gsr_kernels.optim.report import warn, warn_findings
from gsr_kernels.optim.targets import FROZEN, NOT_HELD, Target
from gsr_kernels.weight import Weight, origin

# weights that have a gradient, each with what this rank holds of it
Live = list[tuple[Weight, Tensor]]


class OwnStep(Optimizer):
    """An optimizer that does the method's part inside its own step; any other is hooked."""

    method_step: MethodStep | None = None

    def refreshed(self) -> None:
        """Take notice of new bases, and of weights that may be new."""

    def reset_moments(self) -> None:
        """Begin anew with everything that is kept of a parameter but its value."""


@dataclass(eq=False)
class MethodStep:
    """The method's part of every step of one optimizer: ``begin``, ``rewrite``, then the update, then ``end``."""

    optimizer: Optimizer
    weights: Sequence[Weight]
    found: Sequence[Target]
    # whether a gradient that is not finite is an error, and every how many steps one is measured
    strict: bool
    record_every: int
    # where bases are looked for, and where all those of now are stored
    given: str | None
    file: str | None
    # the weights whose basis in ``given`` was taken from other values than they have
    stale: list[Weight]
    # the steps that were taken, in all and when the task began; -1 after a checkpoint
    count: int = 0
    begun: int = 0
    # whether the step under way is a checkpoint's, which fills a new optimizer and moves nothing
    rehearsed: bool = False
    # whether the optimizer's state came from a checkpoint that holds nothing for the method
    unconfirmed: bool = False
    # steps between two refreshes of a weight; 0 for none
    refresh_every: int = 0

    def __post_init__(self) -> None:
        """Sort the weights by what a step does to them."""
        self.methods = list({id(weight.method): weight.method for weight in self.weights}.values())
        self.meshes: list[Layout] = [w.scheme.layout for w in self.weights if w.scheme.layout.mesh is not None]
        self._kind = self.weights[0].skipped.device.type
        self._sharded = [weight for weight in self.weights if not weight.whole]
        self._sharded_step: ShardedStep | None = None
        # the weights whose gradients a call of the optimizer steps, and whether it is the first call of a step
        self._stepped = self.weights
        self._begins = True
        self._constraining = [weight for weight in self.weights if weight.method.constrains]
        # what attach() met: anything else in the optimizer came later
        held = (p for group in self.optimizer.param_groups for p in group["params"])
        self._met = {*held, *(target.parameter for target in self.found)}
        # gradients are looked at before they are rewritten, so that nothing may be fused
        self.whole_gradients = self.strict or bool(self.record_every)

    def begin(self) -> Live | None:
        """Return the weights that have a gradient, or None where the step is a rehearsal."""
        self._check_held(self.weights)
        found = [(weight, weight.scheme.layout.gradient(weight.name, weight.parameter)) for weight in self._stepped]
        live = [(weight, G) for weight, G in found if G is not None]
        self.rehearsed = is_rehearsal(self.optimizer, [G for _, G in live], self.meshes)
        if self.rehearsed:
            return None
        if not self._begins:
            return live
        self.decompose_stale()
        if self.unconfirmed:
            self.unconfirmed = False
            warn("unconfirmed")
        if not self.count:
            changed = self.changed(self.weights)
            if changed:
                warn("changed", [weight.name for weight in changed])
        self.count += 1
        return live

    @torch.no_grad()
    def rewrite(self, live: Live) -> None:
        """Rewrite the gradients of these weights in place, and of the sharded ones; count and measure."""
        # a fused optimizer divides by the scale of a GradScaler inside its step
        scale = getattr(self.optimizer, "grad_scale", None)
        # which way a step goes decides which directions are minor: ascent along G is descent along -G
        groups = self.optimizer.param_groups
        rising = [G for weight, G in live if groups[weight.place[0]].get("maximize")]
        _negate(rising)
        # under autocast the products would be taken in 16 bits, or refused
        with torch.autocast(self._kind, enabled=False), ExitStack() as after:
            after.callback(_negate, rising)
            whole = [one for one in live if one[0].whole] if self._sharded else live
            if self._sharded:
                of = {id(weight): G for weight, G in live}
                check = (lambda sums: self._check_finite(whole, sums)) if self.strict else None
                if self._sharded_step is None or not self._sharded_step.fits():
                    self._sharded_step = ShardedStep(self._sharded)
                self._sharded_step.rewrite([of.get(id(weight)) for weight in self._sharded], check)
            elif self.strict:
                self._check_finite(whole, [])
            for method in self.methods if whole or not self._sharded else ():
                mine = whole if len(self.methods) == 1 else [one for one in whole if one[0].method is method]
                self._transform(method, mine, scale)

    @torch.no_grad()
    def end(self) -> None:
        """Correct the weights where the method does, and refresh those whose turn it is."""
        if self.rehearsed:
            return
        # a fused optimizer that met an overflow has left the weights as they were: so must the method
        overflow = getattr(self.optimizer, "found_inf", None) if self._constraining else None
        if overflow is None or not overflow.item():
            for weight in self._constraining:
                W = weight.held
                with torch.autocast(self._kind, enabled=False):
                    constrain: Any = weight.method.constrain
                    check_nothing(
                        weight.method, constrain(weight.basis.split(W), weight.basis.to(W.device), weight.state)
                    )
        if self.refresh_every:
            n = self.refresh_every
            due = [w for i, w in enumerate(self.weights) if (self.count + i * n // len(self.weights)) % n == 0]
            self.refresh(due)
        if self.count == 1:
            warn_findings(self.weights, self.uncovered(), self.count, False)

    def decompose_stale(self) -> None:
        """Decompose what the file held of other weights: no checkpoint has asked for it."""
        if self.stale:
            warn("stale", [weight.name for weight in self.stale], file=self.given)
            self.refresh(self.stale)

    def refresh(self, weights: Sequence[Weight]) -> None:
        """Give weights new bases and the method new state; where one cannot be decomposed nothing is changed."""
        if not weights:
            return
        self._check_held(weights)
        bases = decompose(weights)
        for weight, basis, kept in zip(weights, bases, prepare(weights, bases)):
            weight.keep(basis)
            weight.state = kept
        self.file, self.unconfirmed = None, False
        self.stale = [weight for weight in self.stale if weight not in weights]
        if isinstance(self.optimizer, OwnStep):
            self.optimizer.refreshed()

    def changed(self, weights: Sequence[Weight]) -> list[Weight]:
        """Return those of the weights that are no longer what their bases were taken from; of shards all must ask."""
        return [weight for weight in weights if weight not in self.stale and weight.basis.fingerprint != origin(weight)]

    def uncovered(self) -> list[str]:
        """Return the matrices that have begun to train since attach(), without the method."""
        late = {one.parameter: one.name for one in self.found if one.eligible and one.reason in (FROZEN, NOT_HELD)}
        names = []
        for i, group in enumerate(self.optimizer.param_groups):
            for p in group["params"]:
                new = p.ndim > 1 and p not in self._met
                if p.requires_grad and (new or p in late):
                    names.append(late.get(p, f"{'x'.join(map(str, p.shape))} in group {i}"))
        return names

    def _check_held(self, weights: Sequence[Weight]) -> None:
        """Raise RuntimeError where the optimizer holds another parameter in place of a weight, or it was re-sharded."""
        groups = [group["params"] for group in self.optimizer.param_groups]
        for weight in weights:
            p, layout, (group, index) = weight.parameter, weight.scheme.layout, weight.place
            found = groups[group][index] if group < len(groups) and index < len(groups[group]) else None
            if found is p and p.shape == layout.shape:
                continue
            placements = getattr(found, "placements", layout.placements)
            if tuple(placements) != layout.placements:
                raise RuntimeError(
                    f"{weight.name} was re-sharded after attach(), and is placed as {placements}: call attach() "
                    "after fully_shard or Accelerator.prepare"
                )
            raise RuntimeError(
                f"the optimizer's parameter groups no longer hold {weight.name} where attach() found it, but another "
                "parameter or none: handle.remove(), then attach() again"
            )

    def _transform(self, method: Method, live: Live, scale: Tensor | None) -> None:
        for weight, G in live:
            if G.layout != torch.strided:
                raise TypeError(f"the gradient of {weight.name} is sparse: build the layer with sparse=False")
            if G.device != weight.skipped.device:
                # the model was moved after attach()
                weight.move(G.device)
        bases, offloaded = [weight.basis for weight, _ in live], any(weight.offloaded for weight, _ in live)
        parts = visits(bases, [G.device for _, G in live]) if offloaded else [(slice(None), bases)]
        for part, several in parts:
            self._rewrite_part(method, live[part], several, scale)

    def _rewrite_part(self, method: Method, live: Live, bases: list[SpectralBasis], scale: Tensor | None) -> None:
        record = bool(self.record_every) and (self.count - 1) % self.record_every == 0
        weights = [weight for weight, _ in live]
        gradients = [basis.split(G) for basis, (_, G) in zip(bases, live)]
        before = [measure_before(G, basis) for G, basis in zip(gradients, bases)] if record else []
        matrices = (basis.split(weight.scheme.layout.local(weight.parameter)) for basis, weight in zip(bases, weights))
        states = (weight.state for weight in weights)
        finite = method.transform(list(zip(gradients, matrices, bases, states)), scale)
        for weight, flags in zip(weights, finite):
            weight.steps += 1
            weight.finite = flags
        _count_skipped(weights, finite)
        for weight, G, measured, flags in zip(weights, gradients, before, finite):
            fresh, ok = measure_after(G, measured), flags.all()
            # what was measured of NaN would blank every mean: the last finite record stays, zeros before there is one
            last = weight.measures or {key: torch.zeros_like(value) for key, value in fresh.items()}
            weight.measures = {key: torch.where(ok, value, last[key]) for key, value in fresh.items()}

    def _check_finite(self, live: Live, sums: Iterable[Tensor]) -> None:
        """Raise FloatingPointError, on all ranks, for a gradient or sum that is not finite, before any is rewritten."""
        found = [*live, *zip(self._sharded, sums)]
        faulty = [weight.name for weight, G in found if not G.isfinite().all()]
        if not all_ranks_agree(not faulty, self.meshes):
            name = faulty[0] if faulty else "a weight on another rank"
            raise FloatingPointError(f"the gradient of {name} holds NaN or Inf; nothing was changed")


def hook_before_steps(optimizer: Optimizer, act: Callable[[], None]) -> RemovableHandle:
    """Have ``act`` called before every step, of one with a closure after it: the gradients come from there."""

    # under torch.compile it runs as it is: traced, it would act while tracing as well
    @torch._disable_dynamo
    def before_step(_: Optimizer, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            act()
            return None

        def closure_then_act() -> Any:
            loss = closure()
            act()
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": closure_then_act}
        return (args[0], closure_then_act, *args[2:]), kwargs

    return optimizer.register_step_pre_hook(before_step)


def is_rehearsal(optimizer: Optimizer, gradients: Sequence[Tensor], meshes: Sequence[Layout] = ()) -> bool:
    """Return True for the step that torch.distributed.checkpoint takes to fill a new optimizer: all of it zero."""
    if optimizer.state and not meshes:
        return False
    for lr in (group.get("lr") for group in optimizer.param_groups):
        # it gives a number, or a tensor on the CPU: to look at one on a GPU would wait for the GPU
        if lr is None or (isinstance(lr, Tensor) and not lr.is_cpu) or lr != 0:
            return False
    # a rank may hold none of a gradient that moves the others, and then no state
    return all_ranks_agree(not optimizer.state and not any(bool(G.any()) for G in gradients), meshes)


def _count_skipped(weights: Sequence[Weight], finite: Sequence[Tensor]) -> None:
    # of a whole model at once: three launches a weight would take longer to give than the rest of the step
    for device in {flags.device for flags in finite}:
        chosen = [(weight, flags) for weight, flags in zip(weights, finite) if flags.device == device]
        skipped = (~torch.cat([flags.reshape(-1) for _, flags in chosen])).long()
        parts = skipped.split([flags.numel() for _, flags in chosen])
        counts = [part.view(()) if part.numel() == 1 else part.sum() for part in parts]
        torch._foreach_add_([weight.skipped for weight, _ in chosen], counts)


def _negate(gradients: list[Tensor]) -> None:
    if gradients:
        torch._foreach_neg_(gradients)
