"""What a step looks for before it acts: steps that are none, and bases that are not those of the weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from gsr_kernels.distributed.agreement import all_ranks_agree
from gsr_kernels.distributed.layout import Layout
from gsr_kernels.messages import some
from gsr_kernels.weight import Weight, origin


def is_rehearsal(optimizer: Optimizer, gradients: Sequence[Tensor], layouts: Sequence[Layout] = ()) -> bool:
    """Whether this is the step that torch.distributed.checkpoint takes to fill a new optimizer: all of it zero."""
    if any(group.get("lr") != 0 for group in optimizer.param_groups):
        return False
    # a rank may hold none of a gradient that moves the others, and then no state
    return all_ranks_agree(not optimizer.state and not any(bool(G.any()) for G in gradients), layouts)


def warn_stale(weights: Sequence[Weight], file: str | None) -> None:
    """Bases that a file holds of other weights, and that no checkpoint has asked for."""
    warnings.warn(
        f"gsr_kernels: bases: {file} was taken from other weights, or another dtype of them, for {len(weights)} of "
        f"those in attach() ({some([weight.name for weight in weights])}): these are decomposed anew. To resume within "
        "a task, load the checkpoint's optimizer or handle state before the first step",
        stacklevel=3,
    )


def warn_unconfirmed() -> None:
    """The optimizer's state was loaded, that of the method was not with it."""
    warnings.warn(
        "gsr_kernels: the optimizer's state came from a checkpoint that holds nothing for the method; the bases are "
        "those of the weights in attach(). To resume within a task, load handle.state_dict() as well",
        stacklevel=3,
    )


def warn_changed(weights: Sequence[Weight], parameters: Sequence[Tensor]) -> None:
    """Weights that were loaded or converted after attach(), at the first step."""
    changed = [w.name for w, W in zip(weights, parameters) if w.basis.fingerprint != origin(w, W)]
    if changed:
        warnings.warn(
            f"gsr_kernels: {len(changed)} weights have changed between attach() and the first step ({some(changed)}): "
            "the bases are those from before. Load or convert a model before attach(), or call handle.refresh()",
            stacklevel=3,
        )
