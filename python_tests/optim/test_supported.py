"""Optimizers that no method can act on, and handles that lose theirs: refused or warned of, with the way out."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.distributed.optim import PostLocalSGDOptimizer
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from gsr_kernels import EWC, OSF, Handle, attach
from python_tests.optim.toy import assert_same_weights, loss_of, make_model, take_steps


class Lomo(torch.optim.Optimizer):
    """As lomo-optim's: a hook moves each weight inside backward(), and there is no step()."""

    def __init__(self, model):
        super().__init__(model.parameters(), {"lr": 0.1})


class ScheduleFree(torch.optim.SGD):
    """As schedulefree's and its successors: train() and eval() exchange the weights."""

    def train(self):
        pass

    def eval(self):
        pass


class Managed(torch.optim.Optimizer):
    """As torchft's OptimizerWrapper: an optimizer by its class alone."""

    def __init__(self, optim):
        self.optim = optim

    def step(self, closure=None):
        self.optim.step()


def test_a_wrapper_that_is_no_optimizer_is_looked_through():
    model = make_model()
    wrapper = Managed(torch.optim.SGD(model.parameters(), 0.1))
    handle = attach(model, wrapper, rho=0.5)
    loss_of(model, 0).backward()
    wrapper.step()
    assert Handle.of(wrapper) is handle and handle.state_dict()["steps"] == 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Lomo, r"Lomo moves each weight inside backward\(\)"),
        (lambda model: LayerWiseDummyOptimizer(optimizer_dict={}), "use .* not layer-wise"),
        (
            lambda model: PostLocalSGDOptimizer(torch.optim.SGD(model.parameters()), None),
            "give its inner optimizer to DDP alone",
        ),
    ],
    ids=["lomo", "layer-wise", "post-local"],
)
def test_optimizers_out_of_reach(build, message):
    model = make_model()
    with pytest.raises(TypeError, match=message):
        attach(model, build(model), rho=0.5)


def test_an_optimizer_that_exchanges_weights_goes_without_constraints():
    model = make_model()
    optimizer = ScheduleFree(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"OSF corrects weights.*ScheduleFree has other weights evaluated"):
        attach(model, optimizer, OSF())
    assert attach(model, optimizer, rho=0.5)


@pytest.mark.parametrize("swap", [True, False], ids=["another", "exchanged"])
def test_a_parameter_replaced_by_another_of_its_shape(swap):
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    attach(model, optimizer, rho=0.5)
    params = optimizer.param_groups[0]["params"]
    params[0] = nn.Parameter(torch.randn(8, 8)) if swap else params[1]
    model(torch.ones(2, 8)).sum().backward()
    with pytest.raises(RuntimeError, match=r"no longer hold 0\.weight where attach\(\) found it"):
        optimizer.step()


def test_a_step_that_the_method_never_saw():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    handle = attach(model, optimizer, rho=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # as accelerate does before training
        optimizer.load_state_dict(optimizer.state_dict())
    take_steps(model, torch.optim.SGD(model.parameters(), 0.1), range(1))
    with pytest.warns(UserWarning, match="no step of the optimizer has reached the method"):
        optimizer.state_dict()
    with pytest.warns(UserWarning, match="no step of the optimizer has reached the method"):
        handle.refresh()
    take_steps(model, optimizer, range(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle.refresh()
    take_steps(model, torch.optim.SGD(model.parameters(), 0.1), range(1))
    with pytest.warns(UserWarning, match="no step of the optimizer has reached the method"):
        handle.refresh()


def test_a_checkpoint_whose_bases_are_in_no_file_warns_once(tmp_path):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    handle = attach(model, optimizer, rho=0.5, bases=tmp_path / "bases.safetensors")
    take_steps(model, optimizer, range(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.state_dict()
    handle.refresh()
    with pytest.warns(UserWarning, match=r"in no file.*handle\.save_bases\(PATH\) before the checkpoint"):
        optimizer.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.state_dict()


@pytest.mark.parametrize("method", [{"rho": 0.5}, {"method": EWC(1.0)}], ids=["handle", "model handle"])
def test_a_handle_is_not_pickled(method):
    model = make_model()
    handle = attach(model, torch.optim.SGD(model.parameters(), 0.1), **method)
    for take in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match=r"cannot be pickled.*state_dict\(\).*bring"):
            take(handle)


def test_an_expanded_gradient_is_written_in_full():
    models = make_model(), make_model()
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        attach(model, optimizer, rho=0.5)
        loss_of(model, 0).backward()
        row = torch.arange(12.0).expand(24, 12)
        model[1].weight.grad = row if model is models[0] else row.contiguous()
        optimizer.step()
    assert_same_weights(*models)


def test_complex_weights_are_named_with_the_way_out():
    model = nn.ParameterDict({"weight": nn.Parameter(torch.zeros(4, 4, dtype=torch.complex64))})
    with pytest.raises(ValueError, match=r"complex \(torch\.complex64\).*view_as_real"):
        attach(model, torch.optim.SGD(model.parameters(), 0.1), rho=0.5, targets=["weight"])
