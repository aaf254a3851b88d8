"""Autocast around a step, attach() or refresh() changes no bit of what is computed."""

import contextlib
import copy

import pytest
import torch

from gsr_kernels import GSRAdamW, attach
from gsr_kernels.methods import GSR, OSF, PSP, GSRFull, InSpan
from python_tests.optim.toy import assert_same_weights, loss_of, make_model

METHODS = {
    "gsr": lambda: GSR(0.5),
    "osf": OSF,
    "psp": PSP,
    "gsr_full": lambda: GSRFull(0.5),
    "in_span": lambda: InSpan(),
}


def trained(start, build, around):
    """Loss and gradients are computed outside: autocast is on where our arithmetic is."""
    model = copy.deepcopy(start)
    with around():
        optimizer, handle = build(model)
    for step in range(6):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        with around():
            optimizer.step()
            if step == 2:
                handle.refresh()
    return model


@pytest.mark.parametrize("name", METHODS)
def test_a_hooked_step(name):
    def build(model):
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        return optimizer, attach(model, optimizer, METHODS[name]())

    start = make_model()
    inside = trained(start, build, lambda: torch.autocast("cpu", torch.bfloat16))
    assert_same_weights(inside, trained(start, build, contextlib.nullcontext))


def test_the_own_optimizer_with_experts():
    def build(model):
        optimizer = GSRAdamW(model, lr=1e-2, rho=0.5)
        return optimizer, optimizer.handle

    start = make_model()
    inside = trained(start, build, lambda: torch.autocast("cpu", torch.bfloat16))
    assert_same_weights(inside, trained(start, build, contextlib.nullcontext))
