"""Reports of a handle, and its warnings."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.messages import some
from gsr_kernels.optim.targets import Target
from gsr_kernels.weight import Weight

# a weight with so many times more columns than rows is hardly a layer's: a probe or a new head
FEW = 32

WARNINGS = {
    "unreached": (
        "no step of the optimizer has reached the method since attach() or refresh(): training steps another optimizer "
        "than the one that attach() was given, or inside backward(), or not at all yet"
    ),
    "uncovered": (
        "{count} matrices train without the method ({names}): at attach() they were frozen or not in the optimizer. "
        "handle.remove() and attach() again take them in"
    ),
    "idle": (
        "{count} of {total} matched weights have had no gradient at any step ({names}): they are frozen, unused, or "
        "gradients are set to None before optimizer.step()"
    ),
    "coverage": "only {coverage:.1%} of the trainable parameters are under the method: print(handle) says why",
    "changed": (
        "{count} weights have changed between attach() and the first step ({names}): the bases are those from before. "
        "Load or convert a model before attach(), or call handle.refresh()"
    ),
    "stale": (
        "bases: {file} was taken from other weights, or another dtype of them, for {count} of those in attach() "
        "({names}): these are decomposed anew. To resume within a task, load the checkpoint's optimizer or handle "
        "state before the first step"
    ),
    "added": "bases: {file} lacks {count} of the matched weights ({names}): decomposed now, and added to it",
    "missing": "bases: {file} lacks {count} of the matched weights ({names}), now new: handle.save_bases() keeps all",
    "unsaved": (
        "bases: a checkpoint is written whose bases are in no file: without them no run can go on from it. "
        "Give attach(bases=PATH), or call handle.save_bases(PATH) before the checkpoint"
    ),
    "unconfirmed": (
        "the optimizer's state came from a checkpoint that holds nothing for the method; the bases are those of the "
        "weights in attach(). To resume within a task, load handle.state_dict() as well"
    ),
    "loader": (
        "{trainer} loads checkpoints by a function of its own: see that it converts packed experts, which are saved "
        "one by one; the Trainer's does not, and they would keep their values from before"
    ),
    "settings": "the checkpoint was made with {method}, this run goes on with attach()'s settings ({count} weights)",
    "pinned": (
        '{names} {what}: "drop" confines them to the directions that they have now. If they are new, leave them out by '
        'targets=, or use out_of_span="keep"'
    ),
}


def summary(weights: Sequence[Weight], coverage: float) -> str:
    """One line: the methods, the matrices, the share of trainable weights that they are."""
    methods = {id(weight.method): repr(weight.method) for weight in weights}
    size = sum(weight.basis.nbytes for weight in weights) / 2**20
    clamped = sum(weight.clamped_from is not None for weight in weights)
    return (
        f"{', '.join(methods.values())} on {len(weights)} weights, {coverage:.1%} of the trainable parameters "
        f"(bases: {size:.1f} MiB)" + (f", the rank clamped on {clamped}: print(handle) lists them" if clamped else "")
    )


def describe(weights: Sequence[Weight], found: Sequence[Target], coverage: float) -> str:
    """The summary, and a line for every matrix of the model: its rank, or why it was skipped."""
    lines = [summary(weights, coverage)]
    by_name = {weight.name: weight for weight in weights}
    for target in found:
        weight = by_name.get(target.name)
        if weight is None:
            note = f"skipped: {target.reason}"
        else:
            basis = weight.basis
            note = f"rank {basis.rank} of {min(basis.shape[-2:])}"
            note += f" (clamped from {weight.clamped_from})" if weight.clamped_from else ""
            note += f", {basis.shape[:-2].numel()} matrices" if basis.S.ndim > 1 else ""
        lines.append(f"  {target.name:<48} {'x'.join(map(str, target.parameter.shape)):>14}  {note}")
    return "\n".join(lines)


def warn(kind: str, names: Sequence[str] = (), **details: object) -> str:
    """Give one of ``WARNINGS``, of these weights, and return its text."""
    text = WARNINGS[kind].format(count=len(names), names=some(names), **details)
    warnings.warn(f"gsr_kernels: {text}", stacklevel=3)
    return text


def warn_findings(weights: Sequence[Weight], uncovered: Sequence[str], steps: int, unreached: bool) -> list[str]:
    """Warn of matrices that began to train after attach(), weights without gradients, steps without the method."""
    idle = [weight.name for weight in weights if not weight.steps] if steps else []
    found = [warn("unreached")] if unreached else []
    found += [warn("uncovered", uncovered)] if uncovered else []
    return found + ([warn("idle", idle, total=len(weights))] if idle else [])


def warn_pinned(bases: Mapping[str, SpectralBasis]) -> None:
    """Warn of weights that whole bases under "drop" confine to the few directions that they were drawn with."""
    few = [name for name, basis in bases.items() if basis.rank * FEW <= max(basis.shape[-2:])]
    zero = [name for name, basis in bases.items() if not basis.S.any()]
    for names, what in ((few, f"have sides that differ {FEW} times or more"), (zero, "are zero")):
        if names:
            warn("pinned", names, what=what)
