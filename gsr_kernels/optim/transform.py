"""One method on the gradients of one optimizer step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from gsr_kernels.basis import SpectralBasis
from gsr_kernels.distributed.agreement import all_ranks_agree
from gsr_kernels.distributed.layout import Layout
from gsr_kernels.methods import Method
from gsr_kernels.offload import visits
from gsr_kernels.optim.metrics import measure_after, measure_before
from gsr_kernels.weight import Weight

# weights with their parameters and gradients
Live = Sequence[tuple[Weight, Tensor, Tensor]]


def check_finite(found: Iterable[tuple[Weight, Tensor]], layouts: Sequence[Layout]) -> None:
    """Raises FloatingPointError, by the name of the weight, for a gradient, or its sum over ranks, that is not finite.

    Before any is rewritten, so that the one at fault can be repaired and the step taken again; on every rank of the
    layouts, all of which must ask.
    """
    faulty = [weight.name for weight, G in found if not G.isfinite().all()]
    if not all_ranks_agree(not faulty, layouts):
        name = faulty[0] if faulty else "a weight on another rank"
        raise FloatingPointError(f"the gradient of {name} holds NaN or Inf; nothing was changed")


def transform(method: Method, live: Live, scale: Tensor | None, record: bool) -> None:
    """Rewrites the gradients of ``(weight, W, G)`` in place and counts; with ``record`` it also measures."""
    for weight, _, G in live:
        _follow(weight, G)
    for part, bases in visits([weight.basis for weight, _, _ in live], [G.device for _, _, G in live]):
        _transform(method, live[part], bases, scale, record)


def _transform(method: Method, live: Live, bases: list[SpectralBasis], scale: Tensor | None, record: bool) -> None:
    gradients = [basis.split(G) for basis, (_, _, G) in zip(bases, live)]
    matrices = [basis.split(W) for basis, (_, W, _) in zip(bases, live)]
    states = [weight.state for weight, _, _ in live]
    before = [measure_before(G, basis) for G, basis in zip(gradients, bases)] if record else []
    finite = method.transform(gradients, matrices, bases, states, scale)
    for (weight, _, _), flags in zip(live, finite):
        weight.steps += 1
        weight.finite = flags
    _count(live, finite)
    for (weight, _, _), G, measured, flags in zip(live, gradients, before, finite):
        fresh, ok = measure_after(G, measured), flags.all()
        # what was measured of NaN would blank every mean: the last finite record stays, zeros before there is one
        last = weight.measures or {key: torch.zeros_like(value) for key, value in fresh.items()}
        weight.measures = {key: torch.where(ok, value, last[key]) for key, value in fresh.items()}


def _count(live: Live, finite: Sequence[Tensor]) -> None:
    # of a whole model at once: three launches a weight would take longer to give than the rest of the step
    for device in {flags.device for flags in finite}:
        chosen = [(weight, flags) for (weight, _, _), flags in zip(live, finite) if flags.device == device]
        skipped = (~torch.cat([flags.reshape(-1) for _, flags in chosen])).long()
        parts = skipped.split([flags.numel() for _, flags in chosen])
        counts = [part.view(()) if part.numel() == 1 else part.sum() for part in parts]
        torch._foreach_add_([weight.skipped for weight, _ in chosen], counts)


def _follow(weight: Weight, gradient: Tensor) -> None:
    """Moves what is kept of a weight to where its gradient is: the model was moved after attach()."""
    if gradient.layout != torch.strided:
        raise TypeError(f"the gradient of {weight.name} is sparse: build the layer with sparse=False")
    if gradient.device != weight.skipped.device:
        weight.keep(weight.basis.to(gradient.device))
        weight.state = {key: value.to(gradient.device) for key, value in weight.state.items()}
        weight.skipped = weight.skipped.to(gradient.device)
