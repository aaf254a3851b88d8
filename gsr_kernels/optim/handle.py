"""The handle that attach() returns: the live connection between a method and an optimizer."""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.checks import is_integer
from gsr_kernels.distributed.agreement import on_rank0
from gsr_kernels.io.bases_file import save_bases
from gsr_kernels.messages import some
from gsr_kernels.methods import Method
from gsr_kernels.optim import state
from gsr_kernels.optim.metrics import directions, overview, summarize
from gsr_kernels.optim.report import describe, summary, warn, warn_findings
from gsr_kernels.optim.step import MethodStep, OwnStep, hook_before_steps
from gsr_kernels.optim.supported import Unpickled, innermost

# the handle of an optimizer by its id, so that none is given two; a handle lives as long as its optimizer
attached: weakref.WeakValueDictionary[int, Handle] = weakref.WeakValueDictionary()


class Handle(Unpickled):
    """A method at work on an optimizer; ``attach`` makes it. ``print(handle)`` lists what is matched and skipped."""

    def __init__(self, step: MethodStep, coverage: float) -> None:
        self.weights = step.weights
        self.coverage = coverage
        self._step = step
        self._optimizer = step.optimizer
        self._unsaved = False
        self._hook()

    @staticmethod
    def of(optimizer: Optimizer) -> Handle | None:
        """The handle of an optimizer, or of the one inside Accelerate's wrapper, if it has one."""
        return attached.get(id(innermost(optimizer)))

    @property
    def methods(self) -> list[Method]:
        """The methods at work, each once."""
        return self._step.methods

    @property
    def refresh_every(self) -> int:
        """Steps between two refreshes of a weight within a task, a few weights a step so that none stalls; 0: none."""
        return self._step.refresh_every

    @refresh_every.setter
    def refresh_every(self, every: int) -> None:
        if not is_integer(every) or every < 0:
            raise ValueError(f"refresh_every must be the steps between two refreshes, or 0 for none, got {every!r}")
        self._step.refresh_every = every

    def refresh(self, reset_moments: bool = False) -> None:
        """Begin a new task: new bases of the weights as they are now, new method state.

        The optimizer's moments stay, unless ``reset_moments``. If a weight cannot be decomposed nothing is changed.
        What ``doctor()`` finds is warned of.

        Raises ValueError where a weight holds NaN or Inf.
        """
        step = self._step
        unreached = step.count == step.begun and bool(step.changed(self.weights))
        step.refresh(self.weights)
        step.begun = step.count
        warn_findings(self.weights, step.uncovered(), step.count, unreached)
        if reset_moments and isinstance(self._optimizer, OwnStep):
            self._optimizer.reset_moments()
        elif reset_moments:
            self._optimizer.state.clear()

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return of each weight, by name, counts since attach() and what the last recorded step measured.

        ``skipped_nonfinite`` (matrices left as they came), ``inactive_directions`` (σ <= 1e-6 σ_max); with
        ``record_every``: ``outside_span`` and ``on_diagonal`` (shares of the gradient's energy), ``norm_ratio``
        (‖G'‖/‖G‖), ``positive`` and ``negative`` (signs of the diagonal of N).
        """
        bases = self.bases
        return {
            weight.name: summarize(weight.skipped, bases[weight.name].S, weight.measures) for weight in self.weights
        }

    def scalars(self) -> dict[str, float]:
        """Return the metrics of all weights in a few numbers for any logger, by names that begin with "gsr/".

        Sums of the counts ``skipped_nonfinite`` and ``inactive_directions``, means of the rest.
        """
        return overview(list(self.metrics().values()))

    @property
    def bases(self) -> dict[str, SpectralBasis]:
        """The basis of each weight, by name.

        Where ranks share weights those of ``attach(bases=…)`` stay until the first step, whatever weights they were of.
        """
        # other ranks need not be asking
        if not self._step.meshes:
            self._step.decompose_stale()
        return {weight.name: weight.basis for weight in self.weights}

    def directions(self, name: str) -> dict[str, Tensor]:
        """Return what the gradient that a weight has now would do to each of its singular directions.

        Keys, each ``[.., k]``: ``sigma``; ``g`` and ``rescaled``, the diagonal of Uᵀ G V before and after the method;
        ``turn_left`` and ``turn_right``. The last two say how fast the step turns each singular vector. They are the
        norms of the rows of H and K (paper, equation 3).

        Raises ValueError where the name is not that of a weight under the method, or it has no gradient.
        """
        found = [weight for weight in self.weights if weight.name == name]
        if not found:
            raise ValueError(f"name must be one of {some(self.bases)}, got {name!r}")
        if not found[0].whole:
            raise ValueError(f"{name} is sharded over ranks: directions() needs a whole gradient on each")
        G = found[0].scheme.layout.gradient(name, found[0].parameter)
        if G is None:
            raise ValueError(f"{name} has no gradient: call directions() between backward() and optimizer.step()")
        return directions(found[0], G)

    def save_bases(self, path: str | os.PathLike[str]) -> None:
        """Write the bases to a file that ``attach(bases=path)`` reads; it appears whole or not at all.

        With weights that are sharded over ranks it is a directory, and every rank must call.
        """
        self._step.decompose_stale()
        settings, bases = {"methods": ", ".join(map(repr, self.methods))}, self.bases
        if any(layout.mesh_dims() for layout in self._step.meshes):
            from gsr_kernels.distributed.store import write_shared

            write_shared(path, self.weights, settings)
        else:
            on_rank0(lambda: save_bases(path, bases, settings), self._step.meshes)
        self._step.file = os.fspath(path)

    def state_dict(self) -> dict[str, Any]:
        """Return counters, settings and fingerprints of the bases: tensors, numbers and strings, never the bases.

        The optimizer's own ``state_dict()`` holds it under "gsr_kernels"; call this where a checkpoint is written
        without that, as by torch.distributed.checkpoint.
        """
        step = self._step
        if step.count and step.file is None and not self._unsaved:
            self._unsaved = True
            warn("unsaved")
        # one weight that is not sharded tells, and asks no other rank
        one = [weight for weight in self.weights if not weight.scheme.layout.mesh_dims()][:1]
        if step.count == step.begun and not step.rehearsed and step.changed(one):
            self.doctor()
        return {
            "format_version": state.FORMAT_VERSION,
            "bases": step.file or "",
            "resuming": int(bool(step.stale)),
            "steps": step.count,
            "refresh_every": step.refresh_every,
            "weights": state.weight_states(self.weights),
        }

    def load_state_dict(self, saved: Mapping[str, Any], bases: str | os.PathLike[str] | None = None) -> None:
        """Go on from ``state_dict()``, before or after the model's weights are loaded.

        Bases of other weights than the checkpoint's are read from ``bases``, by default the file of
        ``attach(bases=…)``; they are never decomposed anew. ``optimizer.load_state_dict`` calls this.

        Raises ValueError, with nothing changed, where a basis is unavailable: the message names the file wanted.
        """
        version, step = saved["format_version"], self._step
        if version > state.FORMAT_VERSION:
            raise ValueError(f"the state has format {version}, newer than {state.FORMAT_VERSION}: upgrade gsr-kernels")
        path = bases or step.file or step.given
        read = state.load_weight_states(self.weights, saved["weights"], path, saved["bases"] or None)
        # of a checkpoint's task nobody knows the beginning; a round trip within this one changes nothing
        step.begun = step.begun if step.count == saved["steps"] else -1
        step.count, step.refresh_every = saved["steps"], saved["refresh_every"]
        if path is not None and (read or bases is not None):
            step.file = os.fspath(path)
        # accelerate writes and reads the state of an optimizer once before training: nothing has been resumed then
        if not saved["resuming"]:
            step.stale = []
        step.unconfirmed = False

    def remove(self) -> None:
        """Take the method off the optimizer, which then steps as if it had never been there. Once is enough."""
        if Handle.of(self._optimizer) is not self:
            return
        for hook in self._hooks:
            hook.remove()
        if isinstance(self._optimizer, OwnStep):
            self._optimizer.method_step = None
        attached.pop(id(self._optimizer), None)

    def doctor(self) -> list[str]:
        """Return what is silently wrong, each finding also given as a warning.

        It runs by itself after the first step and at ``refresh()``.
        """
        step = self._step
        return warn_findings(self.weights, step.uncovered(), step.count, step.count in (0, step.begun))

    def __repr__(self) -> str:
        return f"<Handle: {summary(self.weights, self.coverage)}; {self._step.count} steps; print() lists the weights>"

    def __str__(self) -> str:
        return describe(self.weights, self._step.found, self.coverage)

    def __deepcopy__(self, memo: dict[int, Any]) -> Handle:
        """Return a handle on a copy of its optimizer, for the weights that were copied before it.

        Raises TypeError where they were not: no model would share what the copy steps.
        """
        lacking = [weight.name for weight in self.weights if id(weight.parameter) not in memo]
        if lacking:
            raise TypeError(
                f"a handle is copied after the model whose weights it steps: copy.deepcopy((model, handle)), in this "
                f"order. Not copied before it: {some(lacking)}"
            )
        twin = memo[id(self)] = object.__new__(Handle)
        for name, value in vars(self).items():
            if name not in ("_hooks", "weights"):
                setattr(twin, name, copy.deepcopy(value, memo))
        twin.weights = twin._step.weights
        twin._hook()
        return twin

    def _hook(self) -> None:
        optimizer = self._optimizer
        self._hooks: list[Any] = [
            optimizer.register_state_dict_post_hook(self._into_checkpoint),
            optimizer.register_load_state_dict_pre_hook(self._out_of_checkpoint),
        ]
        if isinstance(optimizer, OwnStep):
            optimizer.method_step = self._step
        else:
            self._hooks.append(hook_before_steps(optimizer, self._transform))
            self._hooks.append(optimizer.register_step_post_hook(self._after_step))
        attached[id(optimizer)] = self

    def _into_checkpoint(self, optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        return {**saved, state.KEY: self.state_dict()}

    def _out_of_checkpoint(self, optimizer: Optimizer, saved: dict[str, Any]) -> None:
        if state.KEY in saved:
            self.load_state_dict(saved[state.KEY])
        else:
            self._step.unconfirmed = not self._step.count

    def _transform(self) -> None:
        with torch.no_grad():
            live = self._step.begin()
            if live is not None:
                self._step.rewrite(live)

    @torch._disable_dynamo
    def _after_step(self, optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
        self._step.end()
