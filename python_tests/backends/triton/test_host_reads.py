"""A step must not wait for the GPU: it looks at the value of no tensor."""

import traceback

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gsr_kernels import GSRAdamW, attach
from gsr_kernels.backends import dispatch
from gsr_kernels.optim.step import is_rehearsal

RATES = [1e-3, torch.tensor(1e-3)]


class Reads(TorchDispatchMode):
    """Collects where bool(), float(), int() and item() of a tensor are called."""

    def __init__(self):
        super().__init__()
        self.where = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            self.where.append("".join(traceback.format_stack(limit=8)))
        return func(*args, **(kwargs or {}))


def reads(make):
    """Return the reads of two steps after the first, which looks once whether the bases are the weights'."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 16), nn.Linear(16, 8))
    optimizer = make(model)
    found = []
    for step in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape)
        with Reads() as mode:
            optimizer.step()
        found += mode.where if step else []
    return found


def attached(model, **settings):
    optimizer = torch.optim.AdamW(model.parameters(), **settings)
    optimizer.handle = attach(model, optimizer, rho=0.5)
    return optimizer


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("lr", RATES, ids=["float", "tensor"])
def test_attach_reads_no_more_than_torch_s_own_optimizer(lr, kernels, monkeypatch):
    monkeypatch.setattr(dispatch, "has_kernels", lambda device: kernels)
    assert not reads(lambda model: attached(model, lr=lr, fused=True))
    plain = reads(lambda model: torch.optim.AdamW(model.parameters(), lr=lr))
    assert len(reads(lambda model: attached(model, lr=lr))) == len(plain)


@pytest.mark.parametrize("lr", RATES, ids=["float", "tensor"])
def test_gsr_adamw_reads_nothing(lr, monkeypatch):
    # on a CPU alone, which waits for nobody, it looks whether all matrices of a weight move
    plain = reads(lambda model: GSRAdamW(model, lr, rho=0.5))
    assert len(plain) == 4 and all("matrices[1].all()" in where for where in plain)
    monkeypatch.setattr(dispatch, "has_kernels", lambda device: True)
    assert not reads(lambda model: GSRAdamW(model, lr, rho=0.5))


def test_the_rate_on_a_gpu_is_not_looked_at():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))])
    # whose value nobody can read
    optimizer.param_groups[0]["lr"] = torch.zeros((), device="meta")
    assert not is_rehearsal(optimizer, [])
    optimizer.param_groups[0]["lr"] = torch.zeros(())
    assert is_rehearsal(optimizer, [torch.zeros(2)]) and not is_rehearsal(optimizer, [torch.ones(2)])
