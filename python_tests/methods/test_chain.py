import pytest
import torch
from torch import nn

from gsr_kernels import attach
from gsr_kernels.methods import GSR, OSF, PSP, SR, Chain, DataAwareGSR, GSRFull, InSpan
from python_tests.oracle import error


def stepped(methods, **settings):
    torch.manual_seed(0)
    layer = nn.Linear(12, 20, dtype=torch.float64)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    handle = attach(layer, optimizer, methods, **settings)
    layer(torch.randn(8, 12, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    return layer.weight.detach(), handle


def by_hand(methods):
    """The same step, each method attached alone to an optimizer that does not move the weight."""
    torch.manual_seed(0)
    layer = nn.Linear(12, 20, dtype=torch.float64)
    layer(torch.randn(8, 12, dtype=torch.float64)).square().sum().backward()
    for method in methods:
        idle = torch.optim.SGD(layer.parameters(), lr=0.0)
        attach(layer, idle, method)
        idle.step()
    return (layer.weight - 0.1 * layer.weight.grad).detach()


@pytest.mark.parametrize("methods", [(SR(1.0), GSR(1.0)), (GSR(1.0), SR(1.0)), (PSP(), GSRFull(), SR(1.0))], ids=repr)
def test_methods_act_in_the_order_given(methods):
    weight, handle = stepped(methods)
    assert error(weight, by_hand(methods)) < 1e-12
    assert handle.weights[0].basis.full_rank


def test_order_matters():
    assert error(stepped((SR(1.0), GSR(1.0)))[0], stepped((GSR(1.0), SR(1.0)))[0]) > 1e-3


def test_sr_goes_with_a_method_that_has_a_basis_of_its_own():
    weight, handle = stepped((SR(1.0), OSF()))
    assert handle.weights[0].basis.rank == 6
    torch.manual_seed(0)
    change = weight - nn.Linear(12, 20, dtype=torch.float64).weight.detach()
    basis = handle.weights[0].basis
    assert torch.linalg.norm(basis.U.mT @ change @ basis.Vh.mT) < 1e-12 * torch.linalg.norm(change)


def test_settings_of_attach_reach_the_methods_that_have_them():
    _, handle = stepped([SR(1.0), GSR(0.5)], out_of_span="keep", rank=4)
    assert handle.methods == [Chain((SR(1.0), GSR(0.5, "keep")))]
    assert handle.weights[0].basis.rank == 4
    assert stepped([GSR(0.5)])[1].methods == [GSR(0.5, "drop")]


def test_state_outlives_the_step():
    _, handle = stepped((GSR(1.0), SR(1.0)))
    before = handle.weights[0].state["1.u"].clone()
    layer_optimizer = handle._optimizer
    with torch.no_grad():
        layer_optimizer.param_groups[0]["params"][0].copy_(torch.randn(20, 12))
    layer_optimizer.step()
    assert not torch.equal(before, handle.weights[0].state["1.u"])


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ((GSR(1.0), OSF()), "GSR and OSF cannot go together: they need different bases"),
        ((OSF(), OSF()), "OSF and OSF cannot go together: each corrects the weight"),
        ((OSF(), InSpan()), "OSF and InSpan cannot go together: each corrects the weight"),
        ((PSP(), DataAwareGSR(1.0, {})), "PSP and DataAwareGSR cannot go together: they need different bases"),
    ],
    ids=str,
)
def test_methods_that_cannot_compose_are_named(methods, message):
    with pytest.raises(ValueError, match=message):
        stepped(methods)


@pytest.mark.parametrize("methods", [(), (GSR(1.0), "sr"), "gsr", GSR], ids=str)
def test_refuses_what_is_no_method(methods):
    with pytest.raises(TypeError, match="method must be"):
        stepped(methods)


def test_refuses_an_out_of_span_that_no_method_has():
    with pytest.raises(ValueError, match="out_of_span is not a setting of SR, PSP"):
        stepped((SR(), PSP()), out_of_span="keep")
