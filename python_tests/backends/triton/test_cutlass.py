"""Second products by CUTLASS, torch in the place of its operator: who is given what, and who goes as ever."""

import pytest
import torch

from gsr_kernels import SpectralBasis
from gsr_kernels.backends import cuda
from gsr_kernels.backends.choice import Case
from gsr_kernels.backends.dispatch import backend_for
from gsr_kernels.backends.triton import trial
from gsr_kernels.backends.triton.moments import Moments, Settings
from gsr_kernels.backends.triton.plan_cache import plan_class

CPU = torch.device("cpu")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
GROUP = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
# every form; several matrices of one weight
CASES = [((24, 24), "drop"), ((40, 24), "drop"), ((24, 40), "drop"), ((40, 24), "keep"), ((3, 24, 40), "drop")]


def in_torch(left, right, lying, kept, scales, coefficients, finite, G, W, exp_avg, exp_avg_sq):
    """What csrc/second_product.h promises."""
    assert all(one.is_contiguous() for one in (G, W, exp_avg, exp_avg_sq, scales, coefficients, finite))
    assert left.dtype == right.dtype == FP16 and {left.stride(0) % 8, right.stride(0) % 8} == {0}
    _, unscale, fresh1, beta, fresh2, rate, root, floor, decay = coefficients.T[..., None, None]
    g = (left.float() @ (right.mT if lying else right).float()) / scales[:, None, None] + (G if kept else 0)
    g = g * unscale
    m = exp_avg + fresh1 * (g - exp_avg)
    v = beta * exp_avg_sq + fresh2 * g * g
    w = W * decay - rate * m / (v.sqrt() * root + floor)
    moving = (finite & (coefficients[:, 0] != 0))[:, None, None]
    for one, new in ((W, w), (exp_avg, m), (exp_avg_sq, v)):
        one.copy_(torch.where(moving, new, one))


@pytest.fixture
def calls(monkeypatch):
    """A machine that has the operator, and what it was asked for."""
    asked = []
    monkeypatch.setattr(cuda, "without_cutlass", lambda device: "")
    monkeypatch.setattr(cuda, "second_product_adamw", lambda *given: asked.append(given) or in_torch(*given))
    return asked


def draw(shape, precision="fp16"):
    W, G = torch.randn(2, *shape)
    return SpectralBasis.of(W, precision=precision), W, G


def step(backend, weights, mode, lay=lambda one: one.clone()):
    """Two steps of AdamW of several weights; their state after them."""
    held = [(lay(W), lay(torch.zeros_like(W)), lay(torch.zeros_like(W))) for _, W, _ in weights]
    bases, gradients = [basis for basis, _, _ in weights], [lay(G) for *_, G in weights]
    counters = [(torch.zeros(()), torch.zeros((), dtype=torch.int64)) for _ in weights]
    moments = [Moments(*one, *counts, 0) for one, counts in zip(held, counters)]
    plan = plan_class(backend)(
        bases, [FP32] * len(bases), 0.5, [mode] * len(bases), updates=[m.update for m in moments]
    )
    settings = Settings(1, CPU)
    settings.set([GROUP], None, None)
    for _ in range(2):
        plan.update(gradients, moments, settings)
    return [tensor for one, counts in zip(held, counters) for tensor in (*one, *counts)]


@pytest.mark.parametrize("shape, mode", CASES, ids=str)
def test_the_same_step(shape, mode, calls):
    weights = [draw(shape), draw(shape)]
    # of the second weight one matrix does not move
    weights[1][2].view(-1)[-1] = torch.nan
    found, expected = step("cutlass", weights, mode), step("cublas", weights, mode)
    for one, right in zip(found, expected):
        torch.testing.assert_close(one, right, rtol=2e-5, atol=1e-6)
    still = found[5].view(-1, *shape[-2:])[-1]
    assert torch.equal(still, weights[1][1].view(-1, *shape[-2:])[-1]) and found[9].item() == 2
    stored, tall = mode == "drop" and shape[-1] != shape[-2], shape[-2] > shape[-1]
    assert len(calls) == 4 and {given[2:4] for given in calls} == {(stored and tall, not stored)}


def test_weights_with_gaps_go_as_ever(calls):
    weights = [draw((40, 24))]
    padded = lambda one: torch.empty(40, 32)[:, :24].copy_(one)  # noqa: E731
    for one, right in zip(step("cutlass", weights, "drop", padded), step("cublas", weights, "drop", padded)):
        assert torch.equal(one, right)
    assert not calls


@pytest.mark.parametrize("shape, precision", [((40, 17), "fp16"), ((40, 24), "bf16")], ids=str)
def test_sizes_and_bases_that_it_does_not_take_go_as_ever(shape, precision, calls):
    weights = [draw(shape, precision)]
    for one, right in zip(step("cutlass", weights, "drop"), step("cublas", weights, "drop")):
        assert torch.equal(one, right)
    assert not calls


@pytest.mark.parametrize("fault", [None, "sign", "nothing"])
def test_the_check_has_the_last_word(fault, calls, monkeypatch):
    monkeypatch.setattr(trial, "SHORT", 24)
    monkeypatch.setattr(trial, "LONG", 40)
    if fault:
        wrong = lambda left, *given: in_torch(-left, *given) if fault == "sign" else None  # noqa: E731
        monkeypatch.setattr(cuda, "second_product_adamw", wrong)
    found = trial.check("cutlass", Case("update", FP32, FP16, (256, 512, 256), "drop"), CPU)
    assert bool(found) == bool(fault), found
    # it is no way of its own for a gradient that goes back to torch, other dtypes, and odd sizes
    for case in (("step", FP32, FP16, (256, 512, 256)), ("update", BF16, FP16, (256, 512, 256)),
                 ("update", FP32, BF16, (256, 512, 256)), ("update", FP32, FP16, (255, 511, 255))):  # fmt: skip
        assert trial.check("cutlass", Case(*case, "drop"), CPU) is None


def test_without_it_there_is_a_reason(monkeypatch):
    assert trial.check("cutlass", Case("update", FP32, FP16, (256, 512, 256), "drop"), CPU) is None
    with pytest.raises(ValueError, match=r"backend='cutlass' is unavailable: .*use backend='triton'"):
        backend_for("step", torch.device("cuda", 0), FP16, FP16, (64, 64, 64), "drop", "cutlass")
