"""Memory of a step beyond weights, gradients and AdamW's own states: bases by their formula, and the workspace."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.optim import Optimizer

from bench.optimizers import ADAMW, ATTACHED, OURS, Linears, makers, work
from bench.run import Run, collect, judged
from bench.timing import peak_extra_bytes
from gsr_kernels.cli.floors import Kind, cost
from gsr_kernels.optim import Handle

# the plan's budget, and what vectors, tables and the allocator's rounding may add
ALLOWED = 256 + 64


def rows(run: Run) -> Iterator[dict]:
    setting = run.setting
    kernels = work(setting, ADAMW, OURS, ATTACHED)
    kinds = [Kind(count, d1, d2) for (d1, d2), count in setting.model.shapes.items()]
    formula = cost(kinds, setting.rank, setting.out_of_span, setting.basis_bytes, setting.gradient_bytes).bases
    predicted = {"formula_mib": round(formula / 2**20, 1), "allowed_mib": ALLOWED}
    if run.dry:
        for row in run.compare(setting.labels, kernels, dict, ADAMW):
            yield row if row["variant"] == ADAMW else {**row, **predicted}
        return
    made = makers(run, Linears(run))
    for name in kernels:
        extra, bases = _held(run, made[name])
        row = {**setting.labels, "variant": name, "extra_mib": round(extra / 2**20, 1)}
        if bases:
            row |= {"bases_mib": round(bases / 2**20, 1), **predicted}
            said = judged("MiB beyond the bases", extra / 2**20, ALLOWED)
            row["verdict"] = f"{said}; bases {bases / formula:.3f} x their formula"
        yield row


def _held(run: Run, make: Callable[[], list[Optimizer]]) -> tuple[int, int]:
    """Return the bytes at a step's peak beyond weights, gradients, states and bases, and those of the bases."""
    collect()
    before = torch.cuda.memory_allocated()
    (optimizer,) = make()
    # states and workspaces are made by the first step
    optimizer.step()
    handle = Handle.of(optimizer)
    bases = sum(basis.nbytes for basis in handle.bases.values()) if handle else 0
    extra = peak_extra_bytes(optimizer.step, run.device)
    if run.on_gpu:
        # what stays from step to step is a step's as well
        states = sum(one.nbytes for state in optimizer.state.values() for one in state.values())
        extra += torch.cuda.memory_allocated() - before - states - bases
    return extra, bases
