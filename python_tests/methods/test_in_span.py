import pytest
import torch
from torch import nn

from gsr_kernels import GSR, attach
from gsr_kernels.methods import GSRFull, InSpan
from python_tests.oracle import double, error


def outside(change, basis):
    change, U, Vh = double(change, basis.U, basis.Vh)
    return (torch.linalg.norm(change - U @ (U.mT @ change @ Vh.mT) @ Vh) / torch.linalg.norm(change)).item()


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (20, 20)], ids=str)
@pytest.mark.parametrize("method", [GSR(1.0), GSRFull()], ids=repr)
def test_adamw_leaves_the_span_unless_it_is_held(method, shape):
    found = {}
    for held in (False, True):
        torch.manual_seed(0)
        layer = nn.Linear(*shape)
        start = layer.weight.detach().clone()
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
        handle = attach(layer, optimizer, (method, InSpan()) if held else method)
        for _ in range(100):
            optimizer.zero_grad()
            (layer(torch.randn(16, shape[0])) - 1).square().mean().backward()
            optimizer.step()
        found[held] = outside(layer.weight.detach() - start, handle.weights[0].basis)
    assert found[True] < 1e-5
    assert shape[0] == shape[1] or found[False] > 0.1


def test_what_lies_in_the_span_does_not_fade():
    method, W = InSpan(), torch.randn(64, 16)
    basis = method.decompose("w", W, None, None)
    held = W.clone()
    for _ in range(1000):
        method.constrain(held, basis, {})
    assert error(held, W) < 2e-6


def test_refuses_a_truncated_basis():
    layer = nn.Linear(8, 8)
    with pytest.raises(ValueError, match="rank must be None for InSpan: it leaves out directions of weight"):
        attach(layer, torch.optim.SGD(layer.parameters()), (GSR(1.0), InSpan()), rank=2)
