import pytest
import torch
from torch import nn

from gsr_kernels import attach
from gsr_kernels.methods import DataAwareGSR
from python_tests.methods import reference
from python_tests.oracle import assert_as_good, error

SHAPES = [(24, 24), (30, 12), (9, 31), (1, 12), (12, 1)]


def rescaled(G, W, D, rho):
    method = DataAwareGSR(rho, {"w": D})
    basis = method.decompose("w", W, None, None)
    return method.gradient(G, W, basis, method.prepare("w", W, basis))


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_literal_form(shape, rho):
    W, G = torch.randn(2, *shape, dtype=torch.float64)
    D = torch.rand(shape[1], dtype=torch.float64) + 0.1
    assert error(rescaled(G, W, D, rho), reference.data_aware(G, W, D, rho)) < 1e-10


def test_rho_zero_is_the_identity():
    W, G = torch.randn(2, 20, 12)
    assert torch.equal(rescaled(G, W, torch.rand(12) + 0.1, 0.0), G)


def test_float32_is_as_good_as_torch():
    # signs of g that rounding could turn would make g' jump: all of them are far from 0
    W = torch.randn(30, 12, dtype=torch.float64)
    D = torch.rand(12, dtype=torch.float64) + 0.1
    U, _, Vh = torch.linalg.svd(W * D, full_matrices=False)
    G = ((U * (torch.rand(12, dtype=torch.float64) + 1)) @ Vh) * D
    truth = reference.data_aware(G, W, D, 1.0)
    plain = reference.data_aware(G.float(), W.float(), D.float(), 1.0)
    assert_as_good(rescaled(G.float(), W.float(), D.float(), 1.0), truth, plain)


def test_heads_share_the_inputs_or_divide_them():
    layer = nn.Linear(8, 6, dtype=torch.float64)
    W, D = layer.weight.detach().clone(), torch.rand(8, dtype=torch.float64) + 0.1
    for heads, dim in ((3, 0), ((2, 1), 1)):
        optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        handle = attach(layer, optimizer, DataAwareGSR(1.0, {"weight": D}), heads={"weight": heads})
        layer.weight.grad = torch.randn_like(W)
        parts = [tensor.chunk(3 if dim == 0 else 2, dim) for tensor in (layer.weight.grad.clone(), W)]
        scales = [D] * 3 if dim == 0 else D.chunk(2)
        truth = torch.cat([reference.data_aware(*one, 1.0) for one in zip(*parts, scales)], dim)
        optimizer.step()
        assert error(layer.weight.grad, truth) < 1e-10
        handle.remove()
        with torch.no_grad():
            layer.weight.copy_(W)


def test_refuses_bad_input_by_name():
    layer = nn.Linear(8, 6)
    optimizer = torch.optim.SGD(layer.parameters())
    with pytest.raises(ValueError, match="rho"):
        DataAwareGSR(2.0, {})
    for bad in (torch.zeros(8), torch.full((8,), torch.nan)):
        with pytest.raises(ValueError, match="input_scale of weight"):
            DataAwareGSR(1.0, {"weight": bad})
    with pytest.raises(ValueError, match="weight: input_scale has no entry for it"):
        attach(layer, optimizer, DataAwareGSR(1.0, {}))
    with pytest.raises(ValueError, match=r"weight: input_scale must be \[8\]"):
        attach(layer, optimizer, DataAwareGSR(1.0, {"weight": torch.ones(6)}))
