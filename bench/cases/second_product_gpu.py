"""Products by CUTLASS beside grouped Triton and cuBLAS: the second with AdamW behind it, and the first.

CUTLASS stays where it beats Triton by 5 %. G, W and moments are float32, bases bf16; nothing of it runs without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gsr_kernels.floors import STATES, Work, transform

from ..draw import draw, error, truth
from ..models import Model
from ..run import RHO, Makers, Run, Setting, Target, Trial

bf16 = torch.bfloat16
# weights of Falcon3-1B, and how many of them are taken at once
SHAPES = {(2048, 2048): 8, (1024, 2048): 16, (8192, 2048): 4, (2048, 8192): 4}
TRITON, CUTLASS, BARE, APART = "triton", "CUTLASS", "torch.mm, bare", "torch.mm, then AdamW"
GROUP = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
# what operands and results of 16 bits leave of float64
TOLERANCE = 3e-2


def rows(run: Run) -> Iterator[dict]:
    if run.on_gpu:
        from .. import candidates

        if reason := candidates.obstacle() or ("" if candidates.has("first_product") else "it has no products"):
            raise RuntimeError(f"{reason}: `python -m bench.candidates` builds them with CUTLASS (docs/csrc.md)")
    elif not run.dry:
        raise RuntimeError("second_product_gpu needs a CUDA device: run `python -m bench.csrc` on a machine with one")
    targets = {CUTLASS: [Target(0.95, TRITON)]}
    for shape, count in SHAPES.items():
        setting = Setting(Model("candidates", {shape: count}, {}), None, "bf16", "fp32")
        *_, last = transform(*shape, min(shape), "drop", 2, 4, end=STATES["fp32"])
        d1, d2 = shape
        labels = {"shape": f"{count}x {d1}x{d2}", "dtype": "float32 x bfloat16"}
        bare = Work(last.flop, 2 * (d1 * d2 + min(shape) * (d1 + d2)))
        work = {TRITON: [last] * count, CUTLASS: [last] * count, BARE: [bare] * count, APART: ()}
        yield from run.compare(labels, work, lambda setting=setting: Second(run, setting).makers(), BARE, targets)
        short, long = min(shape), max(shape)
        labels = {"shape": f"{count}x {short}x{short}x{long}", "dtype": "bfloat16", "layout": "NT"}
        first = [Work(2 * short * short * long, 2 * (2 * short * long + short * short))] * count
        work = {f"first product, {name}": first for name in (TRITON, CUTLASS, BARE)}
        wanted = {f"first product, {CUTLASS}": [Target(0.95, f"first product, {TRITON}")]}
        make = lambda count=count, short=short, long=long: first_products(run, count, short, long)  # noqa: E731
        yield from run.compare(labels, work, make, f"first product, {BARE}", wanted)


class Second:
    """Weights, moments, and the operands of their second products as the launches before it leave them."""

    def __init__(self, run: Run, setting: Setting) -> None:
        from gsr_kernels.backends.triton.forms import Update
        from gsr_kernels.backends.triton.plan import Plan

        self.run, (self.bases, self.G) = run, draw(setting, setting.model.matrices, run.device)
        self.W = [torch.randn_like(G) for G in self.G]
        count = len(self.G)
        kept = Update(torch.float32, torch.float32)
        # room for all in one group, whose folded products stay
        self.plan = Plan(self.bases, [torch.float32] * count, RHO, ["drop"] * count, 8192, updates=[kept] * count)
        self.expected = truth(self.G[0], self.bases[0], RHO, "drop")

    def makers(self) -> Makers:
        # which runs all of the plan's launches: the others read what it leaves
        first = self.triton()
        return {TRITON: lambda: first, CUTLASS: self.cutlass, BARE: self.bare, APART: self.apart}

    def moments(self) -> list[list[Tensor]]:
        """W, m and v of every weight before its first step."""
        return [[W.clone(), torch.zeros_like(W), torch.zeros_like(W)] for W in self.W]

    def error(self, m: Tensor, v: Tensor) -> float:
        """Of the moments of the first weight after its first step."""
        fresh1, fresh2 = (1 - beta for beta in GROUP["betas"])
        return max(error(m, fresh1 * self.expected), error(v, fresh2 * self.expected.square()))

    def triton(self) -> Trial:
        from gsr_kernels.backends.triton.moments import Moments, Settings

        device = self.run.device
        settings, held = Settings(1, device), []
        settings.set([GROUP], None, None)
        for W, m, v in self.moments():
            step, skipped = torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)
            held.append(Moments(W, m, v, step, skipped, 0))
        self.plan.update(self.G, held, settings)
        found = self.error(held[0].exp_avg, held[0].exp_avg_sq)

        def launch() -> list[Moments]:
            for group in self.plan._groups:
                self.plan._second_product(group, aligned=True)
            return held

        return self.run.trial(launch, lambda: found, TOLERANCE)

    def operands(self, i: int) -> tuple[Tensor, Tensor, Callable[[], object]]:
        """left and right in bf16, and what makes them of δ where Triton does so within its second product."""
        basis, G = self.bases[i], self.G[i].to(bf16).float()
        U, Vh = basis.U.float(), basis.Vh.float()
        delta = self.plan._delta.view(len(self.G), -1)[i]
        d1, d2 = G.shape
        if d1 > d2:
            return basis.U, (U.mT @ G + delta.unsqueeze(-1) * Vh).to(bf16), lambda: None
        if d1 < d2:
            return (G @ Vh.mT + U * delta).to(bf16), basis.Vh, lambda: None
        left = torch.empty_like(basis.U)
        return left, basis.Vh, lambda: torch.mul(basis.U, delta, out=left)

    def cutlass(self) -> Trial:
        kept, held = self.W[0].shape[0] == self.W[0].shape[1], self.moments()
        steps = [(*self.operands(i), *held[i], self.plan._coefficients[i], self.plan._finite[i : i + 1])
                 for i in range(len(held))]  # fmt: skip

        def launch() -> None:
            for (left, right, fold, W, m, v, coefficients, finite), G in zip(steps, self.G):
                fold()
                torch.ops.gsr_candidates.second_product_adamw(left, right, G, kept, coefficients, finite, W, m, v)

        launch()
        found = self.error(*held[0][1:])
        return self.run.trial(launch, lambda: found, TOLERANCE)

    def bare(self) -> Trial:
        steps = []
        for i, G in enumerate(self.G):
            left, right, fold = self.operands(i)
            fold()
            steps.append((left, right, torch.empty_like(G, dtype=bf16)))
        return self.run.trial(lambda: [torch.mm(left, right, out=out) for left, right, out in steps])

    def apart(self) -> Trial:
        square = self.W[0].shape[0] == self.W[0].shape[1]
        parameters = [W.clone().requires_grad_() for W in self.W]
        optimizer = torch.optim.AdamW(parameters, fused=True, capturable=True, **GROUP)
        steps = [self.operands(i) for i in range(len(parameters))]
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)

        def launch() -> None:
            for parameter, (left, right, fold), G in zip(parameters, steps, self.G):
                fold()
                torch.ops.aten.mm.dtype_out(left, right, torch.float32, out=parameter.grad)
                if square:
                    parameter.grad.add_(G)
            optimizer.step()

        launch()
        state = optimizer.state[parameters[0]]
        found = self.error(state["exp_avg"], state["exp_avg_sq"])
        return self.run.trial(launch, lambda: found, TOLERANCE)


def first_products(run: Run, count: int, short: int, long: int) -> Makers:
    """G V in bf16, stored as it is: what the main loops reach."""
    from ..bare import Grouped

    left, right = (torch.randn(count, short, long, device=run.device).to(bf16) for _ in range(2))
    out = torch.empty(count, short, short, device=run.device, dtype=bf16)
    expected = left[-1].double() @ right[-1].double().mT

    def trial(of: Callable[[], object]) -> Trial:
        out.fill_(torch.nan)
        return run.trial(of, lambda: error(out[-1], expected), TOLERANCE)

    def by_cutlass() -> None:
        for one, other, result in zip(left, right, out):
            torch.ops.gsr_candidates.first_product(one, other, result)

    makers = {
        TRITON: lambda: trial(Grouped(left, right, out, "NT", "128x128x64")),
        CUTLASS: lambda: trial(by_cutlass),
        BARE: lambda: trial(lambda: torch.bmm(left, right.mT, out=out)),
    }
    return {f"first product, {name}": maker for name, maker in makers.items()}
