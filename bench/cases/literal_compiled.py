"""The literal form under torch.compile, searched for the best kernels, beside the two-product form and GSR."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.run import RHO, Makers, Run, Target, Trial
from bench.transforms import draw, error, literal, literal_work, planned, truth, two_products
from gsr_kernels.cli.floors import transform

OURS, TORCH, EAGER = "GSR", "two products, torch", "literal, eager"
MODES = {"literal, compiled": "default", "literal, compiled, max-autotune": "max-autotune-no-cudagraphs"}
TOLERANCE = 2e-2


def rows(run: Run) -> Iterator[dict]:
    """Yield rows of one matrix of each shape: every shape is compiled anew."""
    setting = run.setting
    labels = setting.labels | {"shape": f"{len(setting.model.shapes)} matrices, one of each shape"}
    ours, chain = [], []
    for d1, d2 in setting.model.shapes:
        form = setting.directions(d1, d2), setting.out_of_span, setting.basis_bytes
        ours += transform(d1, d2, *form, setting.gradient_bytes, setting.unit)
        chain += literal_work(d1, d2, *form, setting.unit)
    work = {OURS: ours, TORCH: ours, EAGER: chain} | dict.fromkeys(MODES, chain)
    targets = {name: [Target(1.5, OURS, at_least=True)] for name in (EAGER, *MODES)}
    yield from run.compare(labels, work, lambda: _variants(run), OURS, targets)


def _variants(run: Run) -> Makers:
    mode = run.setting.out_of_span
    bases, gradients = draw(run.setting, list(run.setting.model.shapes), run.device)
    expected = [truth(G, basis, RHO, mode) for G, basis in zip(gradients, bases)]

    def proof(results: list[Tensor]) -> float:
        return max(error(*pair) for pair in zip(results, expected))

    def ours() -> Trial:
        inside = [G.clone() for G in gradients]
        return Trial(planned(inside, bases, mode), lambda: proof(inside), TOLERANCE, "graph")

    def torchs() -> Trial:
        outs = [torch.empty_like(G) for G in gradients]
        return run.trial(lambda: two_products(gradients, bases, outs, mode), lambda: proof(outs), TOLERANCE)

    def chain(compiled: str | None) -> Trial:
        # shapes of both modes would pass the limit of recompilations
        torch.compiler.reset()
        of = literal if compiled is None else torch.compile(literal, mode=compiled, dynamic=False)
        results: list[Tensor] = []

        def run_all() -> None:
            results[:] = [of(G, b.U, b.S, b.Vh, RHO, mode) for G, b in zip(gradients, bases)]

        # H and K lose digits where singular values are close: its error is said, and refuses nothing but NaN
        return run.trial(run_all, lambda: proof(results), float("inf"))

    makers = {TORCH: torchs, EAGER: lambda: chain(None)}
    makers |= {OURS: ours} if run.by_plan else {}
    if run.on_gpu:
        # a CPU has a compiler of its own, and no search
        makers |= {name: lambda name=name: chain(MODES[name]) for name in MODES}
    return makers
