import pytest
import torch
from torch import nn

import gsr_kernels
from python_tests.gpu.weights import BF16, FP32


@pytest.fixture(autouse=True)
def as_in_training(on_gpu):
    """No default device: an optimizer counts its steps on the host."""
    with torch.device("cpu"):
        yield


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_a_step_of_an_optimizer_waits_for_nothing(dtype, set_to_none):
    model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256)).to("cuda", dtype)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    handle = gsr_kernels.attach(model, optimizer, rho=0.5)
    before = [parameter.detach().clone() for parameter in model.parameters()]

    def backward():
        optimizer.zero_grad(set_to_none=set_to_none)
        batch = torch.randn(32, 256, device="cuda", dtype=dtype)
        (model(batch) - batch).square().mean().backward()

    for _ in range(2):
        backward()
        optimizer.step()
    backward()
    plain = model[0].weight.grad.clone()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not torch.equal(plain, model[0].weight.grad)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters()))
    assert all(weight.skipped == 0 for weight in handle.weights)
