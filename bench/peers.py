"""What one might use instead: Muon, the OSF projection of PEFT and GaLore, on the same matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gsr_kernels.cli.floors import Work

from .draw import orthonormal

# Newton–Schulz iterations of torch.optim.Muon
ITERATIONS = 5


def muon_work(d1: int, d2: int) -> list[Work]:
    """The products of its Newton–Schulz iteration, in bf16: X Xᵀ, its square, and their product with X."""
    n, m = sorted((d1, d2))
    products = [(2 * m * n * n, 2 * (m * n + n * n)), (2 * n**3, 4 * n * n), (2 * m * n * n, 2 * (2 * m * n + n * n))]
    return [Work(flop, moved) for flop, moved in products] * ITERATIONS


def osf_work(d1: int, d2: int, number: int, unit: str) -> list[Work]:
    """The projection with half of the directions protected: two products with dU, the Gram matrix, and dV times it."""
    r = min(d1, d2)
    k = r // 2
    low = r - k
    return [
        Work(2 * d1 * k * low, number * (d1 * r + k * low), unit),
        Work(2 * d1 * k * low, number * (d1 * k + k * low + 2 * d1 * low), unit),
        Work(2 * k * d2 * d2, number * (k * d2 + d2 * d2), unit),
        Work(2 * low * d2 * d2, number * (3 * low * d2 + d2 * d2), unit),
    ]


def osf(weights: Sequence[Tensor]) -> Callable[[], None]:
    """One projection of every weight's gradients; its factors are drawn, not decomposed.

    Raises ModuleNotFoundError without peft.
    """
    from peft.tuners.osf.utils import project_gradient_to_orthogonal_space

    held = []
    for W in weights:
        d1, d2 = W.shape
        r = min(d1, d2)
        k = r // 2
        U, V = (orthonormal(d, r, W.device).to(W.dtype) for d in (d1, d2))
        low = {
            "U_low": nn.Parameter(U[:, k:].contiguous()),
            "S_low": nn.Parameter(torch.ones_like(U[0, k:])),
            "V_low": nn.Parameter(V[:, k:].mT.contiguous()),
        }
        for parameter in low.values():
            parameter.grad = torch.randn_like(parameter)
        held.append({**low, "U_high": U[:, :k].contiguous(), "V_high": V[:, :k].mT.contiguous(), "rank_high": k})

    @torch.no_grad()
    def project() -> None:
        for one in held:
            project_gradient_to_orthogonal_space(one)

    return project


def galore_work(d1: int, d2: int, rank: int, number: int, unit: str) -> list[Work]:
    """The projection, Adam on the smaller gradient, and the way back into the weight."""
    k = min(rank, d1, d2)
    short, long = sorted((d1, d2))
    return [
        Work(2 * d1 * d2 * k, number * (d1 * d2 + (short + long) * k), unit),
        Work(12 * long * k, 5 * number * long * k, "fp32"),
        Work(2 * d1 * d2 * k, number * (2 * d1 * d2 + (short + long) * k), unit),
    ]


def galore(weights: Sequence[nn.Parameter], rank: int) -> Callable[[], object]:
    """Its step between two decompositions, on projections that are drawn. Raises ModuleNotFoundError without it."""
    from galore_torch import GaLoreAdamW
    from galore_torch.galore_projector import GaLoreProjector

    setting = {"rank": rank, "update_proj_gap": 2**62, "scale": 0.25, "proj_type": "std"}
    optimizer = GaLoreAdamW([{"params": list(weights), **setting}], lr=1e-4, no_deprecation_warning=True)
    for W in weights:
        k = min(rank, *W.shape)
        projector = GaLoreProjector(k, update_proj_gap=2**62, scale=0.25, proj_type="std")
        basis = orthonormal(min(W.shape), k, W.device).to(W.dtype)
        projector.ortho_matrix = basis.mT.contiguous() if W.shape[0] >= W.shape[1] else basis
        # past the step at which it would decompose
        optimizer.state[W] |= {"projector": projector, "step": 1}
    return optimizer.step
