"""Reports of a handle, and its warnings."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from gsr_kernels.messages import some
from gsr_kernels.optim.targets import Target
from gsr_kernels.weight import Weight


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


def warn_findings(weights: Sequence[Weight], uncovered: Sequence[str], steps: int, unreached: bool) -> list[str]:
    """Warn of all that is silently wrong, and return the warnings.

    Args:
        uncovered: matrices that began to train after attach().
        steps: those that the method has seen.
        unreached: whether weights move, or should, in none of them.
    """
    found = []
    if unreached:
        found.append(
            "no step of the optimizer has reached the method since attach() or refresh(): training steps another "
            "optimizer than the one that attach() was given, or inside backward(), or not at all yet"
        )
    if uncovered:
        found.append(
            f"{len(uncovered)} matrices train without the method ({some(uncovered)}): at attach() they were frozen or "
            "not in the optimizer. handle.remove() and attach() again take them in"
        )
    idle = [weight.name for weight in weights if not weight.steps]
    if idle and steps:
        found.append(
            f"{len(idle)} of {len(weights)} matched weights have had no gradient at any step ({some(idle)}): they are "
            "frozen, unused, or gradients are set to None before optimizer.step()"
        )
    for finding in found:
        warnings.warn(f"gsr_kernels: {finding}", stacklevel=3)
    return found


def warn_stale(weights: Sequence[Weight], file: str | None) -> None:
    """Warn of bases that a file holds of other weights, and that no checkpoint has asked for."""
    warnings.warn(
        f"gsr_kernels: bases: {file} was taken from other weights, or another dtype of them, for {len(weights)} of "
        f"those in attach() ({some([weight.name for weight in weights])}): these are decomposed anew. To resume within "
        "a task, load the checkpoint's optimizer or handle state before the first step",
        stacklevel=3,
    )


def warn_missing(weights: Sequence[Weight], file: str, added: bool) -> None:
    """Warn of weights that a bases file lacks, and say what became of them."""
    what = "added to it" if added else "in no file: handle.save_bases(path) keeps all, which a resume will need"
    warnings.warn(
        f"gsr_kernels: bases: {file} lacks {len(weights)} of the matched weights "
        f"({some([weight.name for weight in weights])}): they were decomposed now and are {what}",
        stacklevel=3,
    )


def warn_unconfirmed() -> None:
    """Warn that the optimizer's state was loaded and that of the method was not with it."""
    warnings.warn(
        "gsr_kernels: the optimizer's state came from a checkpoint that holds nothing for the method; the bases are "
        "those of the weights in attach(). To resume within a task, load handle.state_dict() as well",
        stacklevel=3,
    )


def warn_unsaved() -> None:
    """Warn that a checkpoint is written whose bases are in no file."""
    warnings.warn(
        "gsr_kernels: bases: a checkpoint is written, and the bases that it needs are in no file: without them no run "
        "can go on from it. Give attach(bases=PATH), or call handle.save_bases(PATH) before the checkpoint",
        stacklevel=3,
    )


def warn_changed(weights: Sequence[Weight]) -> None:
    """Warn of weights that were loaded or converted after attach(), if there are any."""
    if weights:
        warnings.warn(
            f"gsr_kernels: {len(weights)} weights have changed between attach() and the first step "
            f"({some([weight.name for weight in weights])}): the bases are those from before. Load or convert a model "
            "before attach(), or call handle.refresh()",
            stacklevel=3,
        )
