"""What holds for every dense method."""

import pytest
import torch
from torch import nn

from gsr_kernels import GSR, attach
from gsr_kernels.methods import OSF, PSP, SR, GSRFull, InSpan

METHODS = [
    GSR(1.0),
    GSRFull(),
    PSP(),
    PSP(variant="complement"),
    PSP(variant="remove_block"),
    OSF(),
    OSF(variant="complement"),
    SR(1e-3),
    (SR(1e-3), GSR(1.0), InSpan()),
]
SHAPES = [(7, 19), (19, 7), (13, 13), (1, 9), (9, 1), (1, 1)]


def make_layer(shape, weight):
    layer = nn.Linear(shape[1], shape[0], bias=False)
    with torch.no_grad():
        if weight == "zero":
            layer.weight.zero_()
        elif weight == "deficient":
            layer.weight.copy_(layer.weight[:, :1] @ layer.weight[:1])
    return layer


@pytest.mark.parametrize("weight", ["random", "zero", "deficient"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_any_weight_is_served(method, shape, weight):
    layer = make_layer(shape, weight)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    attach(layer, optimizer, method)
    for _ in range(3):
        optimizer.zero_grad()
        (layer(torch.randn(4, shape[1])) - 1).square().mean().backward()
        optimizer.step()
        assert layer.weight.isfinite().all()


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_nan_leaves_its_matrix_as_it_came_and_is_counted(method):
    model = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = attach(model, optimizer, method)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    model[0].weight.grad[2, 3] = torch.nan
    before = [parameter.grad.clone() for parameter in model.parameters()]
    optimizer.step()
    assert torch.equal(model[0].weight.grad.nan_to_num(7.0), before[0].nan_to_num(7.0))
    assert model[1].weight.grad.isfinite().all() and not torch.equal(model[1].weight.grad, before[2])
    assert [record["skipped_nonfinite"] for record in handle.metrics().values()] == [1, 0]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_bfloat16_weights_and_gradients(method):
    layer = nn.Linear(16, 24, dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    if any(one.constrains for one in (method if isinstance(method, tuple) else (method,))):
        with pytest.raises(ValueError, match="corrects weights after each step"):
            attach(layer, optimizer, method)
        return
    attach(layer, optimizer, method)
    layer(torch.randn(4, 16, dtype=torch.bfloat16)).square().mean().backward()
    optimizer.step()
    assert layer.weight.dtype == layer.weight.grad.dtype == torch.bfloat16
    assert layer.weight.isfinite().all()


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_new_task_begins_from_the_weights_as_they_are(method):
    layer = nn.Linear(8, 12)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-1)
    handle = attach(layer, optimizer, method)
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
    handle.refresh()
    W, weight = layer.weight.detach(), handle.weights[0]
    top = weight.basis.U[:, 0] @ W @ weight.basis.Vh[0]
    assert top.item() == pytest.approx(torch.linalg.matrix_norm(W, 2).item(), rel=0.02)


def test_heads_are_rescaled_one_by_one():
    layer = nn.Linear(6, 8, dtype=torch.float64)
    other = nn.Linear(6, 4, dtype=torch.float64)
    with torch.no_grad():
        other.weight.copy_(layer.weight[:4])
    gradient = torch.randn(8, 6, dtype=torch.float64)
    for each, heads, G in ((layer, {"weight": 2}, gradient), (other, None, gradient[:4])):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.0)
        attach(each, optimizer, GSRFull(), heads=heads)
        each.weight.grad = G.clone()
        optimizer.step()
    assert torch.allclose(layer.weight.grad[:4], other.weight.grad)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"nothing": 2}, "matches none of weight"),
        ({"weight": 5}, "weight: heads must be"),
        ({"weight": (2, 2)}, "heads must"),
    ],
    ids=str,
)
def test_refuses_heads_that_do_not_fit(heads, message):
    layer = nn.Linear(6, 8)
    with pytest.raises(ValueError, match=message):
        attach(layer, torch.optim.SGD(layer.parameters()), GSR(1.0), heads=heads)
