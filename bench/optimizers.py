"""Optimizers of one model side by side, and what one might use instead: Muon, OSF of PEFT."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bench.run import DTYPES, RHO, Run, Setting
from bench.transforms import Drawn, draw_bases, error, orthonormal, truth
from gsr_kernels import EWC, PSP, SR, GSRAdamW, GSRFull, Method, SpectralBasis, attach, methods
from gsr_kernels.cli.floors import STATES, Work, adamw
from gsr_kernels.methods.base import Heads
from gsr_kernels.optim import Handle
from gsr_kernels.optim.targets import find_targets

ADAMW, OURS, ATTACHED, MUON, OSF = "AdamW", "GSRAdamW", "attach + AdamW", "Muon", "OSF projection alone (PEFT)"
# float32 weights and states beside the 16-bit weights
MASTER = "GSRAdamW, fp32 master"
# what operands and moments of 16 bits leave of float64
TOLERANCE = 3e-2


def on_drawn(method: Method, run: Run) -> Method:
    """Return a method on the random bases of a setting, without a decomposition; OSF's are of half the directions."""

    def decompose(name: str, W: Tensor, rank: int | None, heads: Heads) -> SpectralBasis:
        basis = draw_bases(run.setting, [(W.shape[0], W.shape[1])], W.device)[0]
        k = basis.rank // 2 if method.own_basis else basis.rank
        return SpectralBasis(basis.U[:, :k].contiguous(), basis.S[:k].contiguous(), basis.Vh[:k].contiguous())

    object.__setattr__(method, "decompose", decompose)
    return method


def ewc(run: Run, model: nn.Module) -> EWC:
    """Return EWC after a task in which every parameter counted alike."""
    method = EWC(1.0)
    for name, W in model.named_parameters():
        method.fisher[name], method.anchors[name] = torch.ones_like(W), W.detach().clone()
    return method


# what attach() puts in front of AdamW, besides GSR
METHODS: dict[str, Callable[[Run, nn.Module], Any]] = {
    "GSR-full + AdamW": lambda run, model: on_drawn(GSRFull(), run),
    "PSP + AdamW": lambda run, model: on_drawn(PSP(), run),
    "PSP middle + AdamW": lambda run, model: on_drawn(PSP(variant="middle"), run),
    "OSF + AdamW": lambda run, model: on_drawn(methods.OSF(), run),
    "OSF complement + AdamW": lambda run, model: on_drawn(methods.OSF(variant="complement"), run),
    "SR + AdamW": lambda run, model: SR(),
    "EWC + AdamW": ewc,
}


class Linears(nn.Module):
    """The matrices of a setting's model as layers, each with a random gradient."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        options = {"bias": False, "device": run.device, "dtype": DTYPES[run.setting.gradient]}
        self.layers = nn.ModuleList(nn.Linear(d2, d1, **options) for d1, d2 in run.setting.model.matrices)
        for W in self.parameters():
            W.grad = torch.randn_like(W)


def work(setting: Setting, *names: str) -> dict[str, list[Work]]:
    """Return the kernels of one step of each on the matrices alone, states in the dtype of the weights."""
    found: dict[str, list[Work]] = {name: [] for name in names}
    states = "fp32" if setting.gradient == "fp32" else "16-bit"
    for d1, d2 in setting.model.matrices:
        plain = adamw(d1 * d2, setting.gradient_bytes, states)
        each = {
            ADAMW: plain,
            OURS: setting.transform(d1, d2, STATES[states]),
            MASTER: setting.transform(d1, d2, STATES["fp32 master, 16-bit copy"]),
            ATTACHED: setting.transform(d1, d2) + plain,
            MUON: muon_work(d1, d2),
            OSF: osf_work(d1, d2, setting.gradient_bytes, "fp32" if states == "fp32" else "16-bit"),
        }
        for name in names:
            found[name] += each[name]
    return found


def makers(run: Run, model: nn.Module) -> dict[str, Callable[[], list[Optimizer]]]:
    """Return, by name, makers of the optimizers that step all of the model, with states of their own."""
    method, rank = Drawn(RHO, setting=run.setting), run.setting.rank
    if rank is not None:
        # a small model has no more
        rank = min(rank, max(map(min, run.setting.model.matrices)))

    def plain(parameters: Iterable[nn.Parameter]) -> Optimizer:
        return torch.optim.AdamW(parameters, 1e-4, fused=True, capturable=run.on_gpu)

    def ours(master: bool = False) -> list[Optimizer]:
        return [GSRAdamW(model, 1e-4, method=method, rank=rank, capturable=run.on_gpu, master_weights=master)]

    def attached() -> list[Optimizer]:
        optimizer = plain(model.parameters())
        attach(model, optimizer, method, rank=rank)
        return [optimizer]

    def muon() -> list[Optimizer]:
        found = find_targets(model, "all-linear", set(model.parameters()))
        matrices = [target.parameter for target in found if target.reason is None]
        rest = [W for W in model.parameters() if W not in set(matrices)]
        return [torch.optim.Muon(matrices, 1e-4), *([plain(rest)] if rest else [])]

    def by_method(name: str) -> list[Optimizer]:
        optimizer = plain(model.parameters())
        attach(model, optimizer, METHODS[name](run, model))
        return [optimizer]

    return {
        **{name: partial(by_method, name) for name in METHODS},
        ADAMW: lambda: [plain(model.parameters())],
        OURS: ours,
        MASTER: lambda: ours(True),
        ATTACHED: attached,
        MUON: muon,
    }


def first_step_error(run: Run, model: nn.Module, optimizer: Optimizer) -> float:
    """Take the first step of an optimizer with a handle.

    Returns the error of its first moments against G' in float64, in one matrix of each shape.
    """
    handle = Handle.of(optimizer)
    parameters, bases = dict(model.named_parameters()), handle.bases
    chosen = {basis.shape: name for name, basis in bases.items()}.values()
    expected = [truth(parameters[name].grad, bases[name], RHO, run.setting.out_of_span) for name in chosen]
    optimizer.step()
    share = 1 - optimizer.defaults["betas"][0]
    moments = [optimizer.state[parameters[name]]["exp_avg"] for name in chosen]
    return max(error(m, share * G) for m, G in zip(moments, expected))


# Newton–Schulz iterations of torch.optim.Muon
ITERATIONS = 5


def muon_work(d1: int, d2: int) -> list[Work]:
    """Return the products of Muon's Newton–Schulz iteration, in bf16: X Xᵀ, its square, and their product with X."""
    n, m = sorted((d1, d2))
    products = [(2 * m * n * n, 2 * (m * n + n * n)), (2 * n**3, 4 * n * n), (2 * m * n * n, 2 * (2 * m * n + n * n))]
    return [Work(flop, moved) for flop, moved in products] * ITERATIONS


def osf_work(d1: int, d2: int, size: int, unit: str) -> list[Work]:
    """Return the projection of half of the directions: two products with dU, the Gram matrix, and dV times it."""
    r = min(d1, d2)
    k = r // 2
    low = r - k
    return [
        Work(2 * d1 * k * low, size * (d1 * r + k * low), unit),
        Work(2 * d1 * k * low, size * (d1 * k + k * low + 2 * d1 * low), unit),
        Work(2 * k * d2 * d2, size * (k * d2 + d2 * d2), unit),
        Work(2 * low * d2 * d2, size * (3 * low * d2 + d2 * d2), unit),
    ]


def osf(weights: Sequence[Tensor]) -> Callable[[], None]:
    """Return one projection of every weight's gradients, on random factors.

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
