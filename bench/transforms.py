"""The forms of the transform that are compared, and random bases and gradients for them.

Any orthonormal factors will do as a basis: no decomposition is waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from bench.run import DTYPES, RHO, Run, Setting, Trial
from gsr_kernels import GSR, SpectralBasis, rescale_gradient
from gsr_kernels.backends.torch.rescale_gradient import rescale_gradient as by_torch
from gsr_kernels.cli.floors import Work
from gsr_kernels.methods.base import Heads
from gsr_kernels.reference import rescale, skew

# what operands of 16 bits leave of float64
TOLERANCE = 2e-2


def draw(setting: Setting, shapes: Sequence[tuple[int, int]], device: torch.device) -> tuple[list, list]:
    """Return a basis and a gradient for each shape."""
    gradients = [torch.randn(shape, device=device).to(DTYPES[setting.gradient]) for shape in shapes]
    return draw_bases(setting, shapes, device), gradients


def draw_bases(setting: Setting, shapes: Sequence[tuple[int, int]], device: torch.device) -> list[SpectralBasis]:
    """Return a basis for each shape, all different."""
    bases, dtype = [], DTYPES[setting.precision]
    for d1, d2 in shapes:
        k = setting.directions(d1, d2)
        S = torch.rand(k, device=device).add(0.1).sort(descending=True).values
        U, V = (orthonormal(d, k, device).to(dtype) for d in (d1, d2))
        bases.append(SpectralBasis(U, S, V.mT.contiguous()))
    return bases


def orthonormal(d: int, k: int, device: torch.device) -> Tensor:
    """Return ``[d, k]`` float32, another one at each call."""
    # rows of either sign in another order: as orthonormal, and another matrix
    signs = torch.randint(0, 2, (d, 1), device=device) * 2 - 1
    return _decomposed(d, k, device)[torch.randperm(d, device=device)] * signs


@lru_cache(maxsize=16)
def _decomposed(d: int, k: int, device: torch.device) -> Tensor:
    return torch.linalg.qr(torch.randn(d, k, device=device)).Q


@dataclass(frozen=True)
class Drawn(GSR):
    """GSR on the random bases of a setting, without a decomposition."""

    setting: Setting | None = field(default=None, repr=False, hash=False)

    def decompose(self, name: str, W: Tensor, rank: int | None, heads: Heads) -> SpectralBasis:
        """See Method.decompose."""
        assert self.setting is not None
        return draw_bases(self.setting, [(W.shape[0], W.shape[1])], W.device)[0]


def truth(G: Tensor, basis: SpectralBasis, rho: float, out_of_span: str) -> Tensor:
    """Return G' in float64 on the operands as stored, in two products."""
    out = torch.empty_like(G, dtype=torch.float64)
    by_torch(G.double(), basis.U.double(), basis.S.double(), basis.Vh.double(), rho, out_of_span, out)
    return out


def error(result: Tensor, truth: Tensor) -> float:
    """Return the relative error in the Frobenius norm."""
    return (torch.linalg.vector_norm(result.double() - truth) / torch.linalg.vector_norm(truth)).item()


def literal(G: Tensor, U: Tensor, S: Tensor, Vh: Tensor, rho: float, out_of_span: str) -> Tensor:
    """Return G' by the literal chain of four products, in its best order.

    Products and G' are in the dtype of U; H, K and the matrices between them in S's, float32.
    """
    tall = G.shape[0] >= G.shape[1]
    G = G.to(U.dtype)
    N = ((U.mT @ G) @ Vh.mT if tall else U.mT @ (G @ Vh.mT)).to(S.dtype)
    H, K = skew(N, S)
    g = rescale(N.diagonal(), S, rho)
    middle = H * S + torch.diag(g) + S.unsqueeze(-1) * K.mT
    if out_of_span == "keep":
        middle = middle - N
    middle = middle.to(U.dtype)
    inside = U @ (middle @ Vh) if tall else (U @ middle) @ Vh
    return G + inside if out_of_span == "keep" else inside


def literal_work(d1: int, d2: int, k: int, out_of_span: str, size: int, unit: str) -> list[Work]:
    """Return the kernels of ``literal`` on elements of ``size`` bytes.

    From N to the middle matrix it takes six passes over k x k.
    """
    short, long = sorted((d1, d2))
    entries, side, factor, core = d1 * d2, size * k * short, size * k * long, size * k * k
    return [
        Work(2 * entries * k, size * entries + factor + side, unit),
        Work(2 * short * k * k, 2 * side + core, unit),
        Work(6 * k * k, 6 * core, "fp32"),
        Work(2 * short * k * k, 2 * side + core, unit),
        Work(2 * entries * k, factor + side + size * entries * (2 if out_of_span == "keep" else 1), unit),
    ]


def two_products(
    gradients: Sequence[Tensor], bases: Sequence[SpectralBasis], outs: Sequence[Tensor], out_of_span: str
) -> None:
    """Compute the best that torch offers, one weight after another, every product in the basis's dtype."""
    for G, basis, out in zip(gradients, bases, outs):
        taken = G.to(basis.U.dtype)
        by_torch(taken, basis.U, basis.S, basis.Vh, RHO, out_of_span, out if taken is G else taken)
        if taken is not G:
            out.copy_(taken)


def bare(gradients: Sequence[Tensor], bases: Sequence[SpectralBasis], out_of_span: str) -> Callable[[], None]:
    """Return the products alone, operands and results laid out beforehand."""
    steps = []
    for G, basis in zip(gradients, bases):
        G, U, Vh = G.to(basis.U.dtype), basis.U, basis.Vh
        tall = out_of_span == "drop" and G.shape[0] > G.shape[1]
        left, right = (U.mT, G) if tall else (G, Vh.mT)
        middle = left @ right
        steps.append((left, right, middle, *((U, middle) if tall else (middle, Vh)), torch.empty_like(G)))

    def products() -> None:
        for left, right, middle, first, second, out in steps:
            torch.mm(left, right, out=middle)
            torch.mm(first, second, out=out)

    return products


def in_place(
    run: Run, gradients: Sequence[Tensor], bases: Sequence[SpectralBasis], backend: str = "triton"
) -> Callable[[], object]:
    """Return the transform as it ships, on a GPU the kernels' step by a backend as a CUDA graph.

    Values drift from run to run, the work is the same.
    """
    mode = run.setting.out_of_span
    if not run.by_plan:
        return lambda: rescale_gradient(gradients, bases, RHO, mode, out=gradients)
    from gsr_kernels.backends.triton.plan_cache import plan_class

    plan = plan_class(backend)(bases, [G.dtype for G in gradients], RHO, [mode] * len(bases))
    replay = plan.capture(gradients)
    return lambda: replay(gradients)


class Problem:
    """Random bases and gradients of some shapes: what transforms them is compared with float64, one of each shape."""

    def __init__(self, run: Run, shapes: Sequence[tuple[int, int]]) -> None:
        self.run, self.mode = run, run.setting.out_of_span
        self.bases, self.gradients = draw(run.setting, shapes, run.device)
        one_of_each = {G.shape: i for i, G in enumerate(self.gradients)}.values()
        self.truths = {i: truth(self.gradients[i], self.bases[i], RHO, self.mode) for i in one_of_each}

    def error(self, results: Sequence[Tensor]) -> float:
        """Return the largest relative error of the results."""
        return max(error(results[i], expected) for i, expected in self.truths.items())

    def ours(self, backend: str = "triton") -> Trial:
        """Return the transform as it ships, on a GPU by a backend."""
        inside = [G.clone() for G in self.gradients]
        launch = "graph" if self.run.by_plan else "eager"
        return Trial(in_place(self.run, inside, self.bases, backend), lambda: self.error(inside), TOLERANCE, launch)

    def by_torch(self) -> Trial:
        """Return both products in torch."""
        outs = [torch.empty_like(G) for G in self.gradients]
        return self.run.trial(
            lambda: two_products(self.gradients, self.bases, outs, self.mode), lambda: self.error(outs), TOLERANCE
        )
