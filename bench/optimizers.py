"""Optimizers of one model side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from gsr_kernels import GSRAdamW, attach
from gsr_kernels.cli.floors import STATES, Work, adamw, transform
from gsr_kernels.optim import Handle
from gsr_kernels.optim.targets import find_targets

from .draw import Drawn, error, truth
from .peers import muon_work
from .run import DTYPES, RHO, Run, Setting

ADAMW, OURS, ATTACHED, MUON = "AdamW", "GSRAdamW", "attach + AdamW", "Muon"
# float32 weights and states beside the 16-bit weights
MASTER = "GSRAdamW, fp32 master"
# what operands and moments of 16 bits leave of float64
TOLERANCE = 3e-2


class Linears(nn.Module):
    """The matrices of a setting's model as layers, each with a random gradient."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        options = {"bias": False, "device": run.device, "dtype": DTYPES[run.setting.gradient]}
        self.layers = nn.ModuleList(nn.Linear(d2, d1, **options) for d1, d2 in run.setting.model.matrices)
        for W in self.parameters():
            W.grad = torch.randn_like(W)


def work(setting: Setting) -> dict[str, list[Work]]:
    """The kernels of one step of each on the matrices alone, states in the dtype of the weights."""
    found: dict[str, list[Work]] = {name: [] for name in (ADAMW, OURS, MASTER, ATTACHED, MUON)}
    states = "fp32" if setting.gradient == "fp32" else "16-bit"
    for d1, d2 in setting.model.matrices:
        form = setting.directions(d1, d2), setting.out_of_span, setting.basis_bytes, setting.gradient_bytes
        plain = adamw(d1 * d2, setting.gradient_bytes, states)
        found[ADAMW] += plain
        found[OURS] += transform(d1, d2, *form, setting.unit, end=STATES[states])
        found[MASTER] += transform(d1, d2, *form, setting.unit, end=STATES["fp32 master, 16-bit copy"])
        found[ATTACHED] += transform(d1, d2, *form, setting.unit) + plain
        found[MUON] += muon_work(d1, d2)
    return found


def makers(run: Run, model: nn.Module) -> dict[str, Callable[[], list[Optimizer]]]:
    """By name what makes the optimizers that together step all of the model, with states of their own."""
    method, rank = Drawn(RHO, setting=run.setting), run.setting.rank

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

    return {
        ADAMW: lambda: [plain(model.parameters())],
        OURS: ours,
        MASTER: lambda: ours(True),
        ATTACHED: attached,
        MUON: muon,
    }


def first_step_error(run: Run, model: nn.Module, optimizer: Optimizer) -> float:
    """Takes the first step of an optimizer with a handle; how far its first moments are from G' in float64, looked at
    in one matrix of each shape."""
    handle = Handle.of(optimizer)
    parameters, bases = dict(model.named_parameters()), handle.bases
    chosen = {basis.shape: name for name, basis in bases.items()}.values()
    expected = [truth(parameters[name].grad, bases[name], RHO, run.setting.out_of_span) for name in chosen]
    optimizer.step()
    share = 1 - optimizer.defaults["betas"][0]
    moments = [optimizer.state[parameters[name]]["exp_avg"] for name in chosen]
    return max(error(m, share * G) for m, G in zip(moments, expected))
