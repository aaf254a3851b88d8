import copy

import pytest
import torch
from torch import nn

from gsr_kernels import GSRAdamW, attach
from gsr_kernels.backends import cuda
from gsr_kernels.backends.triton.plan_cache import Steps
from python_tests.gpu.weights import BF16, FP32, STEPS
from python_tests.oracle import error

SETTINGS = {"lr": 1e-2, "weight_decay": 0.1}
# of other states what is kept outside the span as well, by one kernel for all shapes
STATES = [{}, {"state_dtype": FP32, "out_of_span": "keep"}, {"master_weights": True, "out_of_span": "keep"}]


@pytest.fixture(autouse=True)
def as_in_training(on_gpu, monkeypatch):
    """No default device: an optimizer is built as a training script builds it. Triton, if torch is faster, too."""
    monkeypatch.setenv("GSR_KERNELS_BACKEND", "triton")
    with torch.device("cpu"):
        yield


@pytest.fixture
def updates(monkeypatch):
    """How many weights the kernels have moved at each step."""
    calls = []
    run = Steps.update
    monkeypatch.setattr(Steps, "update", lambda self, G, *arguments: calls.append(len(G)) or run(self, G, *arguments))
    return calls


def make_model(dtype):
    torch.manual_seed(5)
    layers = (nn.Linear(256, 768), nn.GELU(), nn.Linear(768, 256), nn.Linear(256, 256), nn.LayerNorm(256))
    return nn.Sequential(*layers).to("cuda", dtype)


def backward(model, step):
    torch.manual_seed(step)
    dtype = next(model.parameters()).dtype
    batch = torch.randn(64, 256).to("cuda", dtype)
    (model(batch) - batch.roll(1, 0)).square().mean().backward()


def take_steps(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad(set_to_none=False)
        backward(model, step)
        optimizer.step()


@pytest.mark.parametrize(
    "options", [{}, {"out_of_span": "keep"}, {"rank": 64}, {"backend": "cublas"}, {"backend": "cutlass"}], ids=str
)
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_it_is_attach_and_adamw(dtype, options, updates, record, monkeypatch):
    options = dict(options)
    if options.get("backend") == "cutlass" and (reason := cuda.without_cutlass(torch.device("cuda", 0))):
        pytest.skip(reason)
    monkeypatch.setenv("GSR_KERNELS_BACKEND", options.pop("backend", "triton"))
    left = make_model(dtype)
    right = copy.deepcopy(left)
    fused = GSRAdamW(left, rho=0.5, **SETTINGS, **options)
    apart = torch.optim.AdamW(right.parameters(), fused=True, **SETTINGS)
    attach(right, apart, rho=0.5, **options)
    take_steps(left, fused, range(STEPS))
    take_steps(right, apart, range(STEPS))
    assert updates == [3] * STEPS
    # attach rounds G' to the dtype of G, the fused step does not
    allowed = {FP32: 1e-4, BF16: 3e-2}[dtype]
    for a, b in zip(left.parameters(), right.parameters()):
        found = error(a, b)
        record(f"{tuple(a.shape)} {dtype}", count=a.numel(), error=f"{found:.3e}")
        assert found <= allowed
        assert fused.state[a]["step"].item() == STEPS


@pytest.mark.parametrize("options", STATES, ids=str)
def test_two_runs_are_equal_to_the_bit(options, updates):
    finals = []
    for _ in range(2):
        model = make_model(BF16)
        take_steps(model, GSRAdamW(model, rho=0.5, **SETTINGS, **options), range(20))
        finals.append(model)
    assert updates == [3] * 40
    for a, b in zip(*(model.parameters() for model in finals)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_a_step_waits_for_nothing(dtype):
    model = make_model(dtype)
    optimizer = GSRAdamW(model, rho=0.5, **SETTINGS)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in range(2):
        take_steps(model, optimizer, [step])
        scheduler.step()
    optimizer.zero_grad()
    backward(model, 2)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_captured_step_is_the_eager_one():
    eager, captured = make_model(FP32), make_model(FP32)
    finals = []
    for model, graphed in ((eager, False), (captured, True)):
        lr = torch.tensor(1e-2, device="cuda")
        optimizer = GSRAdamW(model, lr, rho=0.5, weight_decay=0.1, capturable=True)
        take_steps(model, optimizer, range(3))
        graph = torch.cuda.CUDAGraph()
        backward(model, 3)
        if graphed:
            before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
            with torch.cuda.graph(graph):
                optimizer.step()
            # recording is not running
            assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before[0].values()))
        for step in range(3, 6):
            optimizer.zero_grad(set_to_none=False)
            backward(model, step)
            lr.fill_(1e-2 / step)
            graph.replay() if graphed else optimizer.step()
        finals.append(model)
    for a, b in zip(eager.parameters(), captured.parameters()):
        assert torch.equal(a, b)


def test_a_matrix_that_is_not_finite_is_skipped_whole(updates):
    model = make_model(BF16)
    optimizer = GSRAdamW(model, rho=0.5, **SETTINGS)
    take_steps(model, optimizer, range(2))
    before = copy.deepcopy((model[0].weight.data, model[2].weight.data, optimizer.state[model[0].weight]))
    optimizer.zero_grad()
    backward(model, 2)
    model[0].weight.grad[3, 4] = torch.inf
    optimizer.step()
    state = optimizer.state[model[0].weight]
    assert torch.equal(model[0].weight, before[0]) and not torch.equal(model[2].weight, before[1])
    assert all(torch.equal(state[key], before[2][key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    assert optimizer.handle.metrics()["0.weight"]["skipped_nonfinite"] == 1


def test_a_grad_scaler_is_honoured():
    finals = []
    for enabled in (False, True):
        model = make_model(FP32)
        optimizer = GSRAdamW(model, rho=0.5, **SETTINGS)
        scaler = torch.amp.GradScaler("cuda", init_scale=2.0**12, enabled=enabled)
        for step in range(5):
            optimizer.zero_grad()
            torch.manual_seed(step)
            batch = torch.randn(64, 256).cuda()
            scaler.scale((model(batch) - batch.roll(1, 0)).square().mean()).backward()
            if enabled and step == 4:
                before = copy.deepcopy(list(model.parameters()))
                model[-1].weight.grad[0] = torch.inf
            if enabled or step < 4:
                scaler.step(optimizer)
                scaler.update()
        finals.append(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before))
    for a, b in zip(*(model.parameters() for model in finals)):
        assert error(a, b) <= 1e-4
