"""The transform of a whole model, from G to G', beside cuBLAS's bare products and the forms that torch offers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from bench.run import RHO, Makers, Run, Setting, Target, Trial
from bench.transforms import draw, error, literal, literal_work, planned, truth, two_products
from gsr_kernels import SpectralBasis, rescale_gradient
from gsr_kernels.cli.floors import Work, transform

# what operands of 16 bits leave of float64
TOLERANCE = 2e-2
OURS, BARE, TORCH = "GSR", "bare products", "two products, torch"
# what the literal form multiplies in
LITERAL = {"literal fp32": torch.float32, "literal tf32": torch.float32, "literal bf16": torch.bfloat16}
TARGETS = {
    OURS: [Target(1.15, BARE, memory=True)],
    TORCH: [Target(1.1, OURS, at_least=True)],
    "literal fp32": [Target(10, OURS, at_least=True)],
    "literal tf32": [Target(2.5, OURS, at_least=True)],
    "literal bf16": [Target(1.5, OURS, at_least=True)],
}


def rows(run: Run) -> Iterator[dict]:
    yield from run.compare(run.setting.labels, work(run.setting), lambda: _variants(run), BARE, TARGETS)


def work(setting: Setting) -> dict[str, list[Work]]:
    """Return the kernels of each variant, over all matrices."""
    found: dict[str, list[Work]] = {name: [] for name in (OURS, BARE, TORCH, *LITERAL)}
    for d1, d2 in setting.model.matrices:
        k, mode, size = setting.directions(d1, d2), setting.out_of_span, setting.basis_bytes
        ours = transform(d1, d2, k, mode, size, setting.gradient_bytes, setting.unit)
        found[OURS] += ours
        found[TORCH] += ours
        found[BARE] += transform(d1, d2, k, mode, size, size, setting.unit)
        for name, dtype in LITERAL.items():
            unit = "16-bit" if dtype.itemsize == 2 else name.split()[1]
            found[name] += literal_work(d1, d2, k, mode, dtype.itemsize, unit)
    return found


def _variants(run: Run) -> Makers:
    setting, device = run.setting, run.device
    bases, gradients = draw(setting, setting.model.matrices, device)
    outs = [torch.empty_like(G) for G in gradients]
    mode = setting.out_of_span
    # one of each shape is compared
    looked_at = list({G.shape: i for i, G in enumerate(gradients)}.values())

    def proof(results: Sequence[Tensor]) -> Callable[[], float]:
        expected = {i: truth(gradients[i], bases[i], RHO, mode) for i in looked_at}
        return lambda: max(error(results[i], expected[i]) for i in looked_at)

    def ours() -> Trial:
        if not run.by_plan:
            return run.trial(lambda: rescale_gradient(gradients, bases, RHO, mode, out=outs), proof(outs), TOLERANCE)
        inside = [G.clone() for G in gradients]
        return Trial(planned(inside, bases, mode), proof(inside), TOLERANCE, "graph")

    def of_literal(name: str) -> Trial:
        dtype = LITERAL[name]
        parts = [(basis.U.to(dtype), basis.S, basis.Vh.to(dtype)) for basis in bases]
        results = list(outs)

        def chain() -> None:
            with _tf32(name == "literal tf32"):
                for i, (G, part) in enumerate(zip(gradients, parts)):
                    results[i] = literal(G, *part, RHO, mode)

        # H and K lose digits where singular values are close: its error is said, and refuses nothing but NaN
        return run.trial(chain, proof(results), float("inf"))

    return {
        BARE: lambda: run.trial(_bare(gradients, bases, mode)),
        OURS: ours,
        TORCH: lambda: run.trial(lambda: two_products(gradients, bases, outs, mode), proof(outs), TOLERANCE),
        # a CPU has neither of the others
        **{name: lambda name=name: of_literal(name) for name in (LITERAL if run.on_gpu else ["literal fp32"])},
    }


def _bare(gradients: list[Tensor], bases: list[SpectralBasis], mode: str) -> Callable[[], None]:
    """Return the products alone, operands and results laid out beforehand."""
    steps = []
    for G, basis in zip(gradients, bases):
        G, U, Vh = G.to(basis.U.dtype), basis.U, basis.Vh
        tall = mode == "drop" and G.shape[0] > G.shape[1]
        left, right = (U.mT, G) if tall else (G, Vh.mT)
        middle = left @ right
        steps.append((left, right, middle, *((U, middle) if tall else (middle, Vh)), torch.empty_like(G)))

    def products() -> None:
        for left, right, middle, first, second, out in steps:
            torch.mm(left, right, out=middle)
            torch.mm(first, second, out=out)

    return products


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
