"""What attach() returns: the live connection between a method and an optimizer."""

from __future__ import annotations

import copy
import os
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gsr_kernels.backends.torch.products import without_autocast
from gsr_kernels.basis import SpectralBasis
from gsr_kernels.distributed.agreement import on_rank0
from gsr_kernels.distributed.layout import Layout, local, local_gradient
from gsr_kernels.distributed.step import transform_shards
from gsr_kernels.io.bases_file import save_bases
from gsr_kernels.messages import some
from gsr_kernels.methods import Method
from gsr_kernels.optim import state
from gsr_kernels.optim.bases import decompose, prepare
from gsr_kernels.optim.directions import directions
from gsr_kernels.optim.guards import is_rehearsal, warn_changed, warn_stale, warn_unconfirmed
from gsr_kernels.optim.metrics import overview, summarize
from gsr_kernels.optim.report import describe, findings
from gsr_kernels.optim.supported import innermost
from gsr_kernels.optim.targets import Target
from gsr_kernels.optim.transform import check_finite, transform
from gsr_kernels.weight import Weight

# the handle of an optimizer by its id, so that none is given two; a handle lives as long as its optimizer
attached: weakref.WeakValueDictionary[int, Handle] = weakref.WeakValueDictionary()


class Handle:
    """A method at work on an optimizer; ``attach`` makes it. ``print(handle)`` lists what is matched and skipped."""

    def __init__(
        self,
        optimizer: Optimizer,
        weights: Sequence[Weight],
        found: Sequence[Target],
        coverage: float,
        nonfinite: str,
        record_every: int,
        bases: str | None,
        stored: bool,
        stale: Sequence[Weight],
    ) -> None:
        self.weights = weights
        self.coverage = coverage
        self._optimizer = optimizer
        self._found = found
        self._nonfinite = nonfinite
        self._record_every = record_every
        self._steps = 0
        self._rehearsed = False
        # where bases are looked for, and where those of now all are; then the weights whose basis from there was taken
        # from other values than they have
        self._given, self._file = bases, bases if stored else None
        self._stale = list(stale)
        # whether the optimizer's state was loaded from a checkpoint that holds nothing for the method
        self._unconfirmed = False
        self._refresh_every = 0
        self._hook()

    @staticmethod
    def of(optimizer: Optimizer) -> Handle | None:
        """The handle of an optimizer, or of the one inside Accelerate's wrapper, if it has one."""
        return attached.get(id(innermost(optimizer)))

    @property
    def methods(self) -> list[Method]:
        """The methods at work, each once."""
        return list({id(weight.method): weight.method for weight in self.weights}.values())

    def refresh(self, reset_moments: bool = False, every: int | None = None) -> None:
        """Begins a new task: new bases of the weights as they are now, new method state.

        The optimizer's moments stay, unless ``reset_moments``. If a weight cannot be decomposed nothing is changed.
        With ``every=n`` nothing happens now: within the task each weight is refreshed every n steps, a few at each
        step so that none stalls; 0 ends that.

        Raises ValueError where a weight holds NaN or Inf, or every is negative.
        """
        if every is not None:
            if every < 0:
                raise ValueError(f"every must be the number of steps between refreshes, or 0 for none, got {every}")
            self._refresh_every = every
            return
        self._refresh(self.weights)
        if reset_moments:
            self._optimizer.state.clear()

    def metrics(self) -> dict[str, dict[str, float]]:
        """Of each weight, by name: counts since attach(), and what the last recorded step measured.

        ``skipped_nonfinite`` (matrices left as they came), ``inactive_directions`` (σ <= 1e-6 σ_max); with
        ``record_every``: ``outside_span`` and ``on_diagonal`` (shares of the gradient's energy), ``norm_ratio``
        (‖G'‖/‖G‖), ``positive`` and ``negative`` (signs of the diagonal of N).
        """
        bases = self.bases
        return {
            weight.name: summarize(weight.skipped, bases[weight.name].S, weight.measures) for weight in self.weights
        }

    def scalars(self) -> dict[str, float]:
        """The metrics of all weights in a few numbers for any logger, by names that begin with "gsr/".

        Sums of the counts ``skipped_nonfinite`` and ``inactive_directions``, means of the rest.
        """
        return overview(list(self.metrics().values()))

    @property
    def bases(self) -> dict[str, SpectralBasis]:
        """The basis of each weight, by name.

        Where ranks share weights those of ``attach(bases=…)`` stay until the first step, whatever weights they were of.
        """
        # the others need not be asking
        if all(layout.mesh is None for layout in self._layouts):
            self._settle()
        return {weight.name: weight.basis for weight in self.weights}

    def directions(self, name: str) -> dict[str, Tensor]:
        """What the gradient that a weight has now would do to each of its singular directions.

        Call it between ``backward()`` and ``optimizer.step()``. Keys, each ``[.., k]``: ``sigma``; ``g`` and
        ``rescaled``, the diagonal of Uᵀ G V before and after the method; ``turn_left`` and ``turn_right``, the norms of
        the rows of H and K (paper, equation 3), how fast the step turns each singular vector.

        Raises ValueError where the name is not that of a weight under the method, or it has no gradient.
        """
        found = [weight for weight in self.weights if weight.name == name]
        if not found:
            raise ValueError(f"name must be one of {some(self.bases)}, got {name!r}")
        if not found[0].whole:
            raise ValueError(f"{name} is sharded over ranks: directions() needs a whole gradient on each")
        G = self._gradient(found[0])
        if G is None:
            raise ValueError(f"{name} has no gradient: call directions() between backward() and optimizer.step()")
        return directions(found[0], self._parameter(found[0]), G)

    def save_bases(self, path: str | os.PathLike[str]) -> None:
        """Writes the bases to a file that ``attach(bases=path)`` reads; it appears whole or not at all.

        With weights that are sharded over ranks it is a directory, and every rank must call.
        """
        self._settle()
        settings, bases = {"methods": ", ".join(map(repr, self.methods))}, self.bases
        if any(layout.mesh_dims() for layout in self._layouts):
            from gsr_kernels.distributed.store import write_shared

            write_shared(path, self.weights, settings)
        else:
            on_rank0(lambda: save_bases(path, bases, settings), self._layouts)
        self._file = os.fspath(path)

    def state_dict(self) -> dict[str, Any]:
        """Counters, settings and the fingerprints of the bases: tensors, numbers and strings, never the bases.

        The optimizer's own ``state_dict()`` holds it under "gsr_kernels"; call this where a checkpoint is written
        without that, as by torch.distributed.checkpoint.
        """
        return {
            "format_version": state.FORMAT_VERSION,
            "bases": self._file or "",
            "resuming": int(bool(self._stale)),
            "steps": self._steps,
            "refresh_every": self._refresh_every,
            "weights": state.weight_states(self.weights),
        }

    def load_state_dict(self, saved: Mapping[str, Any], bases: str | os.PathLike[str] | None = None) -> None:
        """Goes on from ``state_dict()``, before or after the model's weights are loaded.

        Bases of other weights than the checkpoint's are read from ``bases``, by default the file of
        ``attach(bases=…)``; they are never decomposed anew. ``optimizer.load_state_dict`` calls this.

        Raises ValueError, with nothing changed, where a basis is not to be had: the message names the file wanted.
        """
        state.check_version(saved["format_version"])
        parameters = [self._parameter(weight) for weight in self.weights]
        wanted = saved["bases"] or None
        path = bases or self._file or self._given
        read = state.load_weight_states(self.weights, parameters, saved["weights"], path, wanted)
        self._steps = saved["steps"]
        self._refresh_every = saved["refresh_every"]
        if path is not None and (read or bases is not None):
            self._file = os.fspath(path)
        # accelerate writes and reads the state of an optimizer once before training: nothing has been resumed then
        if not saved["resuming"]:
            self._stale = []
        self._unconfirmed = False

    def remove(self) -> None:
        """Takes the method off the optimizer, which then steps as if it had never been there."""
        for hook in self._hooks:
            hook.remove()
        attached.pop(id(self._optimizer), None)

    def doctor(self) -> list[str]:
        """What is silently wrong, each finding also given as a warning; runs by itself after the first step."""
        found = findings(self.weights, self._steps)
        for finding in found:
            warnings.warn(f"gsr_kernels: {finding}", stacklevel=2)
        return found

    def __str__(self) -> str:
        return describe(self.weights, self._found, self.coverage)

    def __deepcopy__(self, memo: dict[int, Any]) -> Handle:
        """A handle on a copy of its optimizer: copy model and handle together. A copied optimizer alone is bare."""
        twin = copy.copy(self)
        memo[id(self)] = twin
        for name, value in vars(self).items():
            if name != "_hooks":
                setattr(twin, name, copy.deepcopy(value, memo))
        twin._hook()
        return twin

    def _hook(self) -> None:
        optimizer = self._optimizer
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_state_dict_post_hook(self._into_checkpoint),
            optimizer.register_load_state_dict_pre_hook(self._out_of_checkpoint),
        ]
        attached[id(optimizer)] = self

    def _into_checkpoint(self, optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        return {**saved, state.KEY: self.state_dict()}

    def _out_of_checkpoint(self, optimizer: Optimizer, saved: dict[str, Any]) -> None:
        if state.KEY in saved:
            self.load_state_dict(saved[state.KEY])
        else:
            self._unconfirmed = not self._steps

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
    @without_autocast()
    def _transform(self) -> None:
        parameters = [self._parameter(weight) for weight in self.weights]
        gradients = [self._gradient(weight) for weight in self.weights]
        found = list(zip(self.weights, parameters, gradients))
        live = [(weight, W, G) for weight, W, G in found if G is not None and weight.whole]
        self._rehearsed = is_rehearsal(self._optimizer, [G for G in gradients if G is not None], self._layouts)
        if self._rehearsed:
            return
        self._settle()
        if self._unconfirmed:
            self._unconfirmed = False
            warn_unconfirmed()
        if not self._steps:
            warn_changed(self.weights, parameters)
        record = bool(self._record_every) and self._steps % self._record_every == 0
        self._steps += 1
        # a fused optimizer divides by the scale of a GradScaler inside its step
        scale = getattr(self._optimizer, "grad_scale", None)
        strict = self._nonfinite == "error"
        # an optimizer of ours moves some of them itself, inside its step
        within = getattr(self._optimizer, "within", None)
        if within is not None:
            placed = [(weight, self._placed(weight), G) for weight, _, G in found if G is not None]
            taken = within(placed, serve=not (strict or self._record_every))
            live = [one for one in live if one[1] not in taken]
        cut = [weight for weight in self.weights if not weight.whole]
        pieces = [G for weight, G in zip(self.weights, gradients) if not weight.whole]
        # which way a step goes decides which directions are minor: ascent along G is descent along -G
        groups = self._optimizer.param_groups
        rising = [G for weight, _, G in found if G is not None and groups[weight.place[0]].get("maximize")]
        _turn(rising)
        try:
            whole = [(weight, G) for weight, _, G in live]
            check = (lambda sums: check_finite([*whole, *zip(cut, sums)], self._layouts)) if strict else None
            transform_shards(cut, pieces, check)
            for method in self.methods:
                transform(method, [one for one in live if one[0].method is method], scale, record)
        finally:
            _turn(rising)

    @torch.no_grad()
    @without_autocast()
    def _after_step(self, optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._rehearsed:
            return
        constraining = [weight for weight in self.weights if weight.method.constrains]
        # a fused optimizer that met an overflow has left the weights as they were: so must the method
        overflow = getattr(optimizer, "found_inf", None) if constraining else None
        if overflow is None or not overflow.item():
            for weight in constraining:
                W = self._parameter(weight)
                weight.method.constrain(weight.basis.split(W), weight.basis.to(W.device), weight.state)
        if self._refresh_every:
            n = self._refresh_every
            due = [w for i, w in enumerate(self.weights) if (self._steps + i * n // len(self.weights)) % n == 0]
            self._refresh(due)
        if self._steps == 1:
            self.doctor()

    def _settle(self) -> None:
        """Decomposes what the file held of other weights: no checkpoint has asked for it."""
        if self._stale:
            warn_stale(self._stale, self._given)
            self._refresh(self._stale)

    def _refresh(self, weights: Sequence[Weight]) -> None:
        if not weights:
            return
        parameters = [self._parameter(weight) for weight in weights]
        bases = decompose(weights, parameters)
        states = prepare(weights, parameters, bases)
        for weight, basis, kept in zip(weights, bases, states):
            weight.keep(basis)
            weight.state = kept
        self._file, self._unconfirmed = None, False
        self._stale = [weight for weight in self._stale if weight not in weights]
        refreshed = getattr(self._optimizer, "refreshed", None)
        if refreshed is not None:
            refreshed()

    @property
    def _layouts(self) -> list[Layout]:
        return [weight.scheme.layout for weight in self.weights]

    def _parameter(self, weight: Weight) -> Tensor:
        """What this rank has of a weight, of one process all of it."""
        return local(self._placed(weight))

    def _gradient(self, weight: Weight) -> Tensor | None:
        return local_gradient(weight.name, self._placed(weight))

    def _placed(self, weight: Weight) -> nn.Parameter:
        group, index = weight.place
        parameter = self._optimizer.param_groups[group]["params"][index]
        layout, mesh = weight.scheme.layout, getattr(parameter, "device_mesh", None)
        if mesh is not None and (tuple(parameter.placements), mesh) != (layout.placements, layout.mesh):
            raise RuntimeError(
                f"{weight.name} was re-sharded after attach(), and is placed as {parameter.placements}: call attach() "
                "after fully_shard or Accelerator.prepare"
            )
        if parameter.shape != layout.shape:
            raise RuntimeError(
                f"the optimizer's parameter groups no longer hold {weight.name} where attach() found it: "
                "handle.remove(), then attach() again"
            )
        return parameter


def _turn(gradients: list[Tensor]) -> None:
    if gradients:
        torch._foreach_neg_(gradients)
