"""GSR on adapters against the dense chain on a gradient that only the test forms, in float64."""

import copy
from typing import get_args

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gsr_kernels import attach, reference
from gsr_kernels.adapters.factors import find_factors
from gsr_kernels.adapters.gsr import AdapterGSR, Spectrum
from python_tests.adapters.peft_models import with_adapters
from python_tests.oracle import error


def loss(model, x):
    return model(x).square().mean()


def draw(count=3, dtype=torch.float64):
    return torch.randn(count, 5, 6, dtype=dtype)


def truth(model, x, rho, spectrum, rank=None, size=1.0):
    """What the chain makes of the factors' gradients, through the dense gradient of every weight."""
    model = copy.deepcopy(model)
    factors = find_factors(model, "third")
    weights = [one.layer.base_layer.weight.requires_grad_() for one in factors]
    gradients = torch.autograd.grad(loss(model, x), weights)
    found = []
    for one, W, G in zip(factors, weights, gradients):
        B, A = one.B.detach(), one.A.detach()
        source = one.scaling * B @ A if spectrum == "adapter" else W.detach()
        k = one.rank if spectrum == "adapter" else rank
        U, S, Vh = (part[..., :k] if i < 2 else part[:k] for i, part in enumerate(torch.linalg.svd(source, False)))
        g = reference.project(size * G, U, Vh).diagonal()
        rescaled = size * G + U @ torch.diag(reference.rescale(g, S, rho) - g) @ Vh
        found.append((one.scaling * rescaled @ A.mT, one.scaling * B.mT @ rescaled))
    return found


def after_step(model, method, x, parts=1, scaler=None, clip=None):
    """The factors' gradients as a step of the optimizer sees them."""
    factors = find_factors(model, "third")
    parameters = [factor for one in factors for factor in (one.A, one.B)]
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    handle = attach(model, optimizer, method)
    for part in x.chunk(parts):
        value = loss(model, part) / parts
        (value if scaler is None else scaler.scale(value)).backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(parameters, clip)
    (optimizer if scaler is None else scaler).step(*(() if scaler is None else (optimizer,)))
    return [(one.B.grad, one.A.grad) for one in factors], handle


CASES = [("adapter", None), ("base", None), ("base", 2)]


@pytest.mark.parametrize("rho", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(("spectrum", "rank"), CASES)
def test_the_factors_get_what_the_dense_chain_gives(spectrum, rank, rho):
    model, x = with_adapters("first", "third"), draw()
    expected = truth(model, x, rho, spectrum, rank)
    found, _ = after_step(model, AdapterGSR(rho, spectrum, rank=rank), x, parts=3)
    for mine, right in zip(found, expected):
        assert all(error(one, other) < 1e-10 for one, other in zip(mine, right))
    if rho:
        plain = truth(model, x, 0.0, spectrum, rank)
        assert any(error(one[0], other[0]) > 1e-3 for one, other in zip(found, plain))


@pytest.mark.parametrize("spectrum", get_args(Spectrum))
def test_scaled_and_clipped_gradients_give_a_scaled_correction(spectrum):
    model, x = with_adapters("third", dtype=torch.float32), draw(dtype=torch.float32)
    expected = truth(model, x, 0.6, spectrum)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    fresh = copy.deepcopy(model)
    for mine, right in zip(after_step(fresh, AdapterGSR(0.6, spectrum), x, 3, scaler)[0], expected):
        assert all(error(one, other) < 1e-4 for one, other in zip(mine, right))
    fresh = copy.deepcopy(model)
    factors = find_factors(fresh, "third")
    loss(fresh, x).backward()
    norm = torch.stack([factor.grad.norm() for one in factors for factor in (one.A, one.B)]).norm().item()
    fresh.zero_grad()
    for mine, right in zip(
        after_step(fresh, AdapterGSR(0.6, spectrum), x, clip=norm / 4)[0], truth(model, x, 0.6, spectrum, size=0.25)
    ):
        assert all(error(one, other) < 1e-4 for one, other in zip(mine, right))


def test_an_adapter_that_has_learned_nothing_has_no_direction():
    model, x = with_adapters("third"), draw()
    with torch.no_grad():
        for one in find_factors(model, "third"):
            one.B.zero_()
    expected = truth(model, x, 0.0, "base")
    found, handle = after_step(model, AdapterGSR(1.0), x)
    for mine, right in zip(found, expected):
        assert all(error(one, other) < 1e-12 for one, other in zip(mine, right))
    assert handle.scalars() == {"gsr/inactive_directions": 6.0, "gsr/skipped_nonfinite": 0.0}


@pytest.mark.parametrize("spectrum", get_args(Spectrum))
def test_a_gradient_that_is_not_finite_stays(spectrum):
    model, x = with_adapters("third"), draw()
    x[0, 0, 0] = torch.nan
    found, handle = after_step(model, AdapterGSR(1.0, spectrum), x)
    assert handle.scalars()["gsr/skipped_nonfinite"] == 3.0
    assert all(not gradient.isfinite().all() for pair in found for gradient in pair[:1])


def test_a_skipped_step_leaves_no_sum_behind():
    model, x = with_adapters("third"), draw()
    expected = truth(model, x, 0.6, "base")
    factors = find_factors(model, "third")
    optimizer = torch.optim.SGD([factor for one in factors for factor in (one.A, one.B)], lr=0.0)
    handle = attach(model, optimizer, AdapterGSR(0.6, "base"))
    loss(model, 7 * draw()).backward()
    optimizer.zero_grad()
    loss(model, x).backward()
    with torch.no_grad():
        loss(model, x)
    optimizer.step()
    for one, right in zip(factors, expected):
        assert error(one.B.grad, right[0]) < 1e-10 and error(one.A.grad, right[1]) < 1e-10
    handle.remove()
    optimizer.zero_grad()
    loss(model, x).backward()
    optimizer.step()
    assert error(factors[0].B.grad, truth(model, x, 0.0, "base")[0][0]) < 1e-12
    assert not any(one.layer._forward_hooks for one in factors)


def test_no_gradient_of_a_weight_is_formed():
    model = with_adapters("third")
    after_step(model, AdapterGSR(1.0, "base"), draw())
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if "lora_" not in name)


def test_several_processes_and_the_base_weights_spectrum(monkeypatch):
    model = with_adapters("third")
    optimizer = torch.optim.SGD([factor for one in find_factors(model, "third") for factor in (one.A, one.B)])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(ValueError, match="one process's tokens, and several train together: use spectrum='adapter'"):
        attach(model, optimizer, AdapterGSR(0.5, "base"))
    assert not optimizer._optimizer_step_pre_hooks
    attach(model, optimizer, AdapterGSR(0.5))


def test_bad_input_is_named():
    model = with_adapters("third")
    with pytest.raises(ValueError, match="rho must be"):
        AdapterGSR(2.0)
    with pytest.raises(ValueError, match="spectrum must be one of adapter, base"):
        AdapterGSR(0.5, "both")
    with pytest.raises(ValueError, match="rank is a setting of spectrum='base'"):
        AdapterGSR(0.5, rank=3)
    with pytest.raises(ValueError, match=r"rank must"):
        AdapterGSR(0.5, "base", rank=100).bind(model)
    with pytest.raises(ValueError, match="no LoRA adapter"):
        AdapterGSR(0.5).bind(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="optimizer lacks 6 of the adapter's 6 factors"):
        attach(model, torch.optim.SGD([nn.Parameter(torch.zeros(1))]), AdapterGSR(0.5))


@pytest.mark.parametrize("spectrum", get_args(Spectrum))
def test_a_closure_makes_the_gradients_that_it_corrects(spectrum):
    model, x = with_adapters("third"), draw()
    expected, factors = truth(model, x, 0.6, spectrum), find_factors(model, "third")
    optimizer = torch.optim.SGD([factor for one in factors for factor in (one.A, one.B)], lr=0.0)
    attach(model, optimizer, AdapterGSR(0.6, spectrum))
    optimizer.step(lambda: loss(model, x).backward())
    for one, right in zip(factors, expected):
        assert error(one.B.grad, right[0]) < 1e-10 and error(one.A.grad, right[1]) < 1e-10


def test_dropout_of_the_adapter_does_not_scale_the_correction():
    model, x = with_adapters("third", lora_dropout=0.5), draw()
    factors = find_factors(model, "third")
    optimizer = torch.optim.SGD([factor for one in factors for factor in (one.A, one.B)], lr=0.0)
    bound = attach(model, optimizer, AdapterGSR(0.6, "base"))._bound[0]
    loss(model.train(), x).backward()
    for one in factors:
        probe, U = bound._sums[one.name][1], bound._bases[one.name].U
        assert error(probe, U.sum(-1) @ one.B.grad / one.scaling) < 1e-10


def test_a_step_that_was_skipped_and_zeroed_in_place_leaves_no_sum_behind():
    model, x = with_adapters("third"), draw()
    expected = truth(model, x, 0.6, "base")
    factors = find_factors(model, "third")
    optimizer = torch.optim.SGD([factor for one in factors for factor in (one.A, one.B)], lr=0.0)
    attach(model, optimizer, AdapterGSR(0.6, "base"))
    loss(model, 7 * draw()).backward()
    optimizer.zero_grad(set_to_none=False)
    loss(model, x).backward()
    optimizer.step()
    for one, right in zip(factors, expected):
        assert error(one.B.grad, right[0]) < 1e-10 and error(one.A.grad, right[1]) < 1e-10


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("spectrum", get_args(Spectrum))
def test_a_module_that_runs_twice_under_activation_checkpointing(spectrum, reentrant):
    found = []
    for around in (lambda body, x: body(x), lambda body, x: checkpoint(body, x, use_reentrant=reentrant)):
        torch.manual_seed(0)
        model = with_adapters("third", base=nn.Sequential(nn.Linear(6, 6), nn.Tanh()), target_modules=["0"])
        gradients, _ = after_step(Around(model, around), AdapterGSR(0.7, spectrum), draw().requires_grad_(), parts=2)
        found.append([factor for pair in gradients for factor in pair])
    assert all(error(other, one) < 1e-12 for one, other in zip(*found))


class Around(nn.Module):
    """A PEFT model that runs twice, each time by way of ``around``."""

    def __init__(self, model, around):
        super().__init__()
        self.model, self.around = model, around

    def forward(self, x):
        return self.around(self.model, self.around(self.model, x))
