"""The transform of a whole model, from G to G', beside cuBLAS's bare products and the forms that torch offers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from bench.run import RHO, Makers, Run, Setting, Target, Trial
from bench.transforms import Problem, bare, literal, literal_work
from gsr_kernels.cli.floors import Work

OURS, CUBLAS, BARE, TORCH = "GSR", "GSR around cuBLAS", "bare products", "two products, torch"
# what the literal form multiplies in
LITERAL = {"literal fp32": torch.float32, "literal tf32": torch.float32, "literal bf16": torch.bfloat16}
TARGETS = {
    OURS: [Target(1.2, BARE, memory=True)],
    CUBLAS: [Target(1.2, BARE, memory=True)],
    TORCH: [Target(1.1, OURS, at_least=True)],
    "literal fp32": [Target(10, OURS, at_least=True)],
    "literal tf32": [Target(2.5, OURS, at_least=True)],
    "literal bf16": [Target(1.5, OURS, at_least=True)],
}


def rows(run: Run) -> Iterator[dict]:
    yield from run.compare(run.setting.labels, work(run.setting), lambda: _variants(run), BARE, TARGETS)


def work(setting: Setting) -> dict[str, list[Work]]:
    """Return the kernels of each variant, over all matrices."""
    found: dict[str, list[Work]] = {name: [] for name in (OURS, CUBLAS, BARE, TORCH, *LITERAL)}
    for d1, d2 in setting.model.matrices:
        for name in (OURS, CUBLAS, TORCH):
            found[name] += setting.transform(d1, d2)
        found[BARE] += replace(setting, gradient=setting.precision).transform(d1, d2)
        for name, dtype in LITERAL.items():
            unit = "16-bit" if dtype.itemsize == 2 else name.split()[1]
            k = setting.directions(d1, d2)
            found[name] += literal_work(d1, d2, k, setting.out_of_span, dtype.itemsize, unit)
    return found


def _variants(run: Run) -> Makers:
    problem = Problem(run, run.setting.model.matrices)

    def of_literal(name: str) -> Trial:
        dtype = LITERAL[name]
        parts = [(basis.U.to(dtype), basis.S, basis.Vh.to(dtype)) for basis in problem.bases]
        results = list(problem.gradients)

        def chain() -> None:
            with _tf32(name == "literal tf32"):
                for i, (G, part) in enumerate(zip(problem.gradients, parts)):
                    results[i] = literal(G, *part, RHO, problem.mode)

        # H and K lose digits where singular values are close: its error is said, and refuses nothing but NaN
        return run.trial(chain, lambda: problem.error(results), float("inf"))

    return {
        BARE: lambda: run.trial(bare(problem.gradients, problem.bases, problem.mode)),
        OURS: problem.ours,
        TORCH: problem.by_torch,
        # a CPU has none of the others
        **({CUBLAS: partial(problem.ours, "cublas")} if run.by_plan else {}),
        **{name: partial(of_literal, name) for name in (LITERAL if run.on_gpu else ["literal fp32"])},
    }


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
