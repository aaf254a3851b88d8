"""The transform in the forms that are measured beside each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gsr_kernels import SpectralBasis
from gsr_kernels.backends.torch.rescale_gradient import rescale_gradient as by_torch
from gsr_kernels.cli.floors import Work
from gsr_kernels.reference import rescale, skew

from .run import RHO


def literal(G: Tensor, U: Tensor, S: Tensor, Vh: Tensor, rho: float, out_of_span: str) -> Tensor:
    """The paper's chain of four products, multiplied in its best order: G' in the dtype of U, whose products these are;
    H, K and what is between them in S's, float32."""
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


def literal_work(d1: int, d2: int, k: int, out_of_span: str, number: int, unit: str) -> list[Work]:
    """Its kernels, each number of so many bytes; from N to the middle matrix it takes six passes over k x k."""
    short, long = sorted((d1, d2))
    entries, side, factor, core = d1 * d2, number * k * short, number * k * long, number * k * k
    return [
        Work(2 * entries * k, number * entries + factor + side, unit),
        Work(2 * short * k * k, 2 * side + core, unit),
        Work(6 * k * k, 6 * core, "fp32"),
        Work(2 * short * k * k, 2 * side + core, unit),
        Work(2 * entries * k, factor + side + number * entries * (2 if out_of_span == "keep" else 1), unit),
    ]


def two_products(
    gradients: Sequence[Tensor], bases: Sequence[SpectralBasis], outs: Sequence[Tensor], out_of_span: str
) -> None:
    """What torch does best, one weight after another: every product in the basis's dtype."""
    for G, basis, out in zip(gradients, bases, outs):
        taken = G.to(basis.U.dtype)
        by_torch(taken, basis.U, basis.S, basis.Vh, RHO, out_of_span, out if taken is G else taken)
        if taken is not G:
            out.copy_(taken)


def planned(gradients: Sequence[Tensor], bases: Sequence[SpectralBasis], out_of_span: str) -> Callable[[], None]:
    """The kernels' step as a CUDA graph, in place: values drift from run to run, the work is the same."""
    from gsr_kernels.backends.triton.plan import Plan

    plan = Plan(bases, [G.dtype for G in gradients], RHO, [out_of_span] * len(bases))
    replay = plan.capture(gradients)
    return lambda: replay(gradients)
