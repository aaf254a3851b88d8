"""One optimizer step on the matrices of a model: GSRAdamW, its two halves apart, and what one might use instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from bench.optimizers import (
    ADAMW,
    ATTACHED,
    MASTER,
    METHODS,
    MUON,
    OSF,
    OURS,
    TOLERANCE,
    Linears,
    first_step_error,
    makers,
    osf,
    work,
)
from bench.run import Makers, Run, Target, Trial
from bench.transforms import draw_bases, in_place

APART = "GSR, then AdamW"


def rows(run: Run) -> Iterator[dict]:
    half = run.setting.gradient != "fp32"
    of = work(run.setting, ADAMW, OURS, MASTER, ATTACHED, MUON, OSF)
    kernels = {ADAMW: of[ADAMW], OURS: of[OURS], MASTER: of[MASTER], APART: of[ATTACHED], **of}
    if not half:
        del kernels[MASTER]
    if run.setting.rank is None and not run.on_gpu:
        # no formula of theirs; a GPU's minutes are the kernels'
        kernels |= dict.fromkeys(METHODS, ())
    ours = [Target(0.85, APART), Target(1.35)] if run.setting.rank is None else [Target(1.4, ADAMW)]
    targets = {OURS: ours, MUON: [Target(5, OURS, at_least=True)]}
    yield from run.compare(run.setting.labels, kernels, lambda: _variants(run, kernels), ADAMW, targets)


def _variants(run: Run, names: Iterable[str]) -> Makers:
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
        gradients = [W.grad for W in model.parameters()]
        transformed = in_place(run, gradients, draw_bases(run.setting, run.setting.model.matrices, run.device))
        step = plain()
        return Trial(lambda: (transformed(), step.run()), launch=step.launch)

    def untested(name: str) -> Trial:
        optimizers = made[name]()
        return Trial(lambda: [optimizer.step() for optimizer in optimizers], launch="eager")

    variants = {
        ADAMW: plain,
        OURS: lambda: tested(OURS, captured=True),
        MASTER: lambda: tested(MASTER, captured=True),
        APART: apart,
        ATTACHED: lambda: tested(ATTACHED, captured=False),
        **{name: partial(untested, name) for name in (MUON, *METHODS)},
        OSF: lambda: Trial(osf(list(model.parameters())), launch="eager"),
    }
    return {name: variants[name] for name in names}
