import pytest
import torch
from accelerate import Accelerator

from gsr_kernels import Handle, attach
from python_tests.optim.toy import OPTIMIZERS, assert_same_weights, loss_of, make_model, take_steps


@pytest.mark.parametrize("before", [True, False], ids=["before-prepare", "after-prepare"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attached_before_and_after_prepare(before, dtype):
    accelerator = Accelerator(cpu=True)
    model = make_model(dtype)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    if before:
        handle = attach(model, optimizer, rho=0.7)
    prepared, wrapped = accelerator.prepare(model, optimizer)
    if not before:
        # on the wrapper: it is looked through
        handle = attach(accelerator.unwrap_model(prepared), wrapped, rho=0.7)
    assert Handle.of(wrapped) is handle
    for step in range(4):
        wrapped.zero_grad()
        accelerator.backward(loss_of(prepared, step))
        wrapped.step()
    assert {weight.basis.S.dtype for weight in handle.weights} == {torch.float32}
    plain = make_model(dtype)
    optimizer = OPTIMIZERS["adamw"](plain.parameters())
    attach(plain, optimizer, rho=0.7)
    take_steps(plain, optimizer, range(4))
    assert_same_weights(model, plain)


def test_save_state_and_load_state(tmp_path):
    def begin():
        accelerator = Accelerator(cpu=True)
        model = make_model()
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        attach(model, optimizer, rho=0.7, bases=tmp_path / "bases.safetensors")
        return accelerator, *accelerator.prepare(model, optimizer)

    accelerator, model, optimizer = begin()
    take_steps(model, optimizer, range(3))
    accelerator.save_state(tmp_path / "state")
    take_steps(model, optimizer, range(3, 6))
    accelerator, resumed, optimizer = begin()
    accelerator.load_state(tmp_path / "state")
    assert Handle.of(optimizer).state_dict()["steps"] == 3
    take_steps(resumed, optimizer, range(3, 6))
    assert_same_weights(resumed, model)
