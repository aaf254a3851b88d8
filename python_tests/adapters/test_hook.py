"""The steps before which what acts on adapters acts, and those that are none."""

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from gsr_kernels import attach
from gsr_kernels.adapters.factors import find_factors
from gsr_kernels.adapters.terms import PSLoRA
from gsr_kernels.methods.on_model import BoundMethod, ModelMethod
from python_tests.adapters.peft_models import with_adapters


class Seeing(ModelMethod, BoundMethod):
    """Notes the steps before which it acts."""

    name = "it"

    def __init__(self, parameters, seen):
        self.parameters, self.act = parameters, seen.append

    def bind(self, model):
        return self


def optimizer_of(model, lr):
    factors = [factor for one in find_factors(model, "second") for factor in (one.A, one.B)]
    return factors, torch.optim.AdamW(factors, lr=lr)


def test_the_step_that_fills_an_optimizer_for_a_checkpoint_is_none():
    model = with_adapters("first", "second")
    factors, optimizer = optimizer_of(model, 1e-3)
    attach(model, optimizer, PSLoRA(0.3))
    before = [factor.detach().clone() for factor in factors]
    get_optimizer_state_dict(model, optimizer)
    assert len(optimizer.state) == len(factors)
    # a term would have left its gradient in the moments
    assert not any(state[key].any() for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq"))
    for factor in factors:
        factor.grad = torch.zeros_like(factor)
    optimizer.step()
    assert all(state["exp_avg"].any() for state in optimizer.state.values())
    assert not any(torch.equal(factor, old) for factor, old in zip(factors, before))


@pytest.mark.parametrize(("lr", "gradient", "acts"), [(0.0, 0.0, False), (0.0, 1.0, True), (1e-3, 0.0, True)])
def test_a_first_step_without_a_rate_and_without_a_gradient_is_none(lr, gradient, acts):
    model, seen = with_adapters("first", "second"), []
    factors, optimizer = optimizer_of(model, lr)
    handle = attach(model, optimizer, Seeing(factors, seen))
    for factor in factors:
        factor.grad = torch.full_like(factor, gradient)
    optimizer.step()
    assert seen == [optimizer] * acts
    # there is a state now: a rate of zero, as a warm-up begins with, is no rehearsal
    optimizer.step()
    assert seen == [optimizer] * (1 + acts)
    handle.remove()
    optimizer.step()
    assert len(seen) == 1 + acts
