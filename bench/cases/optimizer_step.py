"""One optimizer step on the matrices of a model: GSRAdamW, its two halves apart, and what one might use instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from bench.optimizers import (
    ADAMW,
    ATTACHED,
    MASTER,
    MUON,
    OURS,
    TOLERANCE,
    Linears,
    first_step_error,
    galore,
    galore_work,
    makers,
    osf,
    osf_work,
    work,
)
from bench.run import RHO, Makers, Run, Target, Trial
from bench.transforms import draw_bases, planned
from gsr_kernels import rescale_gradient

EAGER, APART, OSF, GALORE = "GSRAdamW, eager", "GSR, then AdamW", "OSF projection alone (PEFT)", "GaLore, rank 256"


def rows(run: Run) -> Iterator[dict]:
    setting = run.setting
    of, half = work(setting), setting.gradient != "fp32"
    unit = "16-bit" if half else "fp32"
    kernels = {ADAMW: of[ADAMW], OURS: of[OURS], EAGER: of[OURS]}
    kernels |= {MASTER: of[MASTER]} if half else {}
    kernels |= {APART: of[ATTACHED], ATTACHED: of[ATTACHED], MUON: of[MUON], OSF: [], GALORE: []}
    for d1, d2 in setting.model.matrices:
        kernels[OSF] += osf_work(d1, d2, setting.gradient_bytes, unit)
        kernels[GALORE] += galore_work(d1, d2, 256, setting.gradient_bytes, unit)
    over_adamw = Target(1.4 if half else 1.2, ADAMW)
    ours = [Target(0.85, APART), Target(1.35)] if setting.rank is None else [over_adamw]
    targets = {OURS: ours, MUON: [Target(5, OURS, at_least=True)]}
    yield from run.compare(setting.labels, kernels, lambda: _variants(run, half), ADAMW, targets)


def _variants(run: Run, half: bool) -> Makers:
    model = Linears(run)
    made = makers(run, model)

    def tested(name: str, captured: bool) -> Trial:
        (optimizer,) = made[name]()
        found = first_step_error(run, model, optimizer)
        if captured:
            return run.trial(optimizer.step, lambda: found, TOLERANCE)
        return Trial(optimizer.step, lambda: found, TOLERANCE, "eager")

    def plain() -> Trial:
        (optimizer,) = made[ADAMW]()
        return run.trial(optimizer.step)

    def apart() -> Trial:
        transformed, step = _transform(run, model), plain()
        return Trial(lambda: (transformed(), step.run()), launch=step.launch)

    def peer(of: Callable[[], Callable[[], object]]) -> Trial:
        return Trial(of(), launch="eager")

    def muon() -> Callable[[], object]:
        optimizers = made[MUON]()
        return lambda: [optimizer.step() for optimizer in optimizers]

    weights = list(model.parameters())
    variants = {
        ADAMW: plain,
        OURS: lambda: tested(OURS, captured=True),
        EAGER: lambda: tested(OURS, captured=False),
        MASTER: lambda: tested(MASTER, captured=True),
        APART: apart,
        ATTACHED: lambda: tested(ATTACHED, captured=False),
        MUON: lambda: peer(muon),
        OSF: lambda: peer(lambda: osf(weights)),
        GALORE: lambda: peer(lambda: galore(weights, 256)),
    }
    # without a graph the first is eager too
    absent = {MASTER: not half, EAGER: not run.on_gpu}
    return {name: maker for name, maker in variants.items() if not absent.get(name)}


def _transform(run: Run, model: nn.Module) -> Callable[[], object]:
    """Return the transform of the gradients in place."""
    setting = run.setting
    gradients = [W.grad for W in model.parameters()]
    bases = draw_bases(setting, setting.model.matrices, run.device)
    if not run.by_plan:
        return lambda: rescale_gradient(gradients, bases, RHO, setting.out_of_span, out=gradients)
    return planned(gradients, bases, setting.out_of_span)
