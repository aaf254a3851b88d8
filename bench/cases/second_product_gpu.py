"""The second product with AdamW behind it by CUTLASS, beside grouped Triton and cuBLAS.

G, W and moments are float32, bases fp16; nothing of it runs without a GPU. Equal matrices are one launch for each. Of
CUTLASS all is counted that Triton's does: where the product is square it scales U. What both need folded before, and
what they multiply, is as the plan's launches leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.cases.products import FALCON3_1B
from bench.models import Model
from bench.run import RHO, Makers, Run, Setting, Target, Trial
from bench.transforms import draw, error, truth
from gsr_kernels.backends import cuda
from gsr_kernels.cli.floors import STATES, Work

fp16 = torch.float16
TRITON, CUTLASS, BARE = "triton", "CUTLASS", "torch.bmm, bare"
# CUTLASS is worth its place if it beats Triton by 5 %
TARGETS = {CUTLASS: [Target(0.95, TRITON)]}
GROUP = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
# what operands and results of 16 bits leave of float64
TOLERANCE = 3e-2


def rows(run: Run) -> Iterator[dict]:
    if not run.dry and (reason := cuda.without_cutlass(run.device)):
        raise RuntimeError(reason)
    for shape, count in FALCON3_1B.items():
        (d1, d2), k = shape, min(shape)
        setting = Setting(Model("weights", {shape: count}, {}), None, "fp16", "fp32")
        *_, last = setting.transform(d1, d2, STATES["fp32"])
        work = dict.fromkeys((TRITON, CUTLASS), [last] * count)
        work[BARE] = [Work(last.flop, 2 * (d1 * d2 + k * (d1 + d2)))] * count
        labels = {"shape": f"{count}x {d1}x{d2}", "dtype": "float32 x float16"}
        yield from run.compare(labels, work, lambda setting=setting: Second(run, setting).makers(), BARE, TARGETS)


class Second:
    """Equal weights, their moments, and the operands of their second products, as the launches before it leave them."""

    def __init__(self, run: Run, setting: Setting) -> None:
        from gsr_kernels.backends.triton.forms import Update
        from gsr_kernels.backends.triton.plan import Plan

        self.run, (bases, gradients) = run, draw(setting, setting.model.matrices, run.device)
        self.G, self.U, self.Vh = (
            torch.stack(some) for some in (gradients, [one.U for one in bases], [one.Vh for one in bases])
        )
        self.square = self.G.shape[1] == self.G.shape[2]
        beta1, beta2 = GROUP["betas"]
        # W, m and v before the step: the moments as large as what it adds, so that an error of either shows
        self.before = [torch.randn_like(self.G), (1 - beta1) * torch.randn_like(self.G),
                       (1 - beta2) * (torch.rand_like(self.G) + 0.1)]  # fmt: skip
        kept, count = Update(torch.float32, torch.float32), len(bases)
        # room for all in one group, whose folded products stay
        self.plan = Plan(bases, [torch.float32] * count, RHO, ["drop"] * count, 8192, updates=[kept] * count)
        self.expected = self.stepped(torch.stack([truth(*of, RHO, "drop") for of in zip(gradients, bases)]))

    def makers(self) -> Makers:
        # which runs all of the plan's launches: the others read what it leaves
        first = self.triton()
        return {TRITON: lambda: first, CUTLASS: self.cutlass, BARE: self.bare}

    def stepped(self, g: Tensor) -> list[Tensor]:
        """Return the first step of W, and m and v after it, in float64."""
        (beta1, beta2), (W, m, v) = GROUP["betas"], (one.double() for one in self.before)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g.square()
        direction = m / (1 - beta1) / ((v / (1 - beta2)).sqrt() + GROUP["eps"])
        return [-GROUP["lr"] * (direction + GROUP["weight_decay"] * W), m, v]

    def trial(self, launch: Callable[[], object], kept: list[Tensor]) -> Trial:
        """Return a trial that tests the launch it times: one replay, from the state before, on all weights."""

        def found() -> float:
            W, m, v = kept
            return max(error(one, true) for one, true in zip((W - self.before[0], m, v), self.expected))

        trial = self.run.trial(launch, found, TOLERANCE)
        for one, before in zip(kept, self.before):
            one.copy_(before)
        return trial

    def triton(self) -> Trial:
        from gsr_kernels.backends.triton.moments import Moments, Settings

        device, kept = self.run.device, [one.clone() for one in self.before]
        settings, held = Settings(1, device), []
        settings.set([GROUP], None, None)
        for W, m, v in zip(*kept):
            step, skipped = torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)
            held.append(Moments(W, m, v, step, skipped, 0))
        self.plan.update(list(self.G), held, settings)

        def launch() -> list[Moments]:
            for group in self.plan._groups:
                self.plan.bind_second_product(group, aligned=True)()
            return held

        return self.trial(launch, kept)

    def operands(self) -> tuple[Tensor, Tensor, bool, Callable[[], object]]:
        """Return left and right in fp16, whether right is transposed, and the scaling of U.

        Triton scales U in its second product where the weight is square; elsewhere there is nothing to do.
        """
        G, U, Vh = self.G.to(fp16).float(), self.U.float(), self.Vh.float()
        # the plan leaves δ multiplied by the scale
        scales, delta = self.plan._scales.view(-1, 1, 1), self.plan._delta.view(len(G), 1, -1)
        _, d1, d2 = G.shape
        if d1 > d2:
            return self.U, (scales * (G.mT @ U) + Vh.mT * delta).to(fp16), True, lambda: None
        if d1 < d2:
            return (scales * (G @ Vh.mT) + U * delta).to(fp16), self.Vh, False, lambda: None
        left = torch.empty_like(self.U)
        return left, self.Vh, False, lambda: torch.mul(self.U, delta, out=left)

    def cutlass(self) -> Trial:
        left, right, transposed, fold = self.operands()
        kept = [one.clone() for one in self.before]
        scalars = self.plan._scales, self.plan._coefficients, self.plan._finite

        def launch() -> None:
            fold()
            cuda.second_product_adamw(left, right, transposed, self.square, *scalars, self.G, *kept)

        return self.trial(launch, kept)

    def bare(self) -> Trial:
        left, right, transposed, fold = self.operands()
        fold()
        right, out = right.mT if transposed else right, torch.empty_like(self.G, dtype=fp16)
        return self.run.trial(lambda: torch.bmm(left, right, out=out))
