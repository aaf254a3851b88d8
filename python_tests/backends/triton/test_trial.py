"""The check of a way to step: it passes what is right, and rejects kernels that are made wrong on purpose."""

from contextlib import contextmanager

import pytest
import torch

from gsr_kernels import SpectralBasis
from gsr_kernels.backends import choice, dispatch
from gsr_kernels.backends.choice import Case, Decisions
from gsr_kernels.backends.torch.rescale_gradient import rescale_gradient
from gsr_kernels.backends.triton import cublas_kernels, plan, step_kernels, trial
from gsr_kernels.methods import GSR

CPU = torch.device("cpu")
fp16, fp32 = torch.float16, torch.float32
SHAPES = [
    ((512, 512, 512), "drop"),
    ((512, 256, 256), "drop"),
    ((256, 512, 256), "drop"),
    ((256, 512, 64), "keep"),
    ((255, 511, 255), "drop"),
]


@pytest.fixture(autouse=True)
def smaller(monkeypatch, tmp_path):
    monkeypatch.setattr(trial, "SHORT", 40)
    monkeypatch.setattr(trial, "LONG", 72)
    monkeypatch.setattr(trial, "TRUNCATED", 24)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choice, "decisions", Decisions("steps.json"))


@pytest.mark.parametrize("way", ["triton", "cublas", "tma"])
def test_what_is_right_passes(way):
    for shape, out_of_span in SHAPES:
        # by TMA there is no way of its own for what is off 16 bytes
        expected = None if way == "tma" and shape[1] % 8 else ""
        assert trial.check(way, Case("step", fp32, fp16, shape, out_of_span), CPU) == expected
    # AdamW behind it, with a narrow copy of the weight
    assert trial.check(way, Case("update", fp16, fp16, (256, 512, 256), "drop"), CPU) == ""


def test_adamw_is_checked_in_the_state_that_torch_keeps_too(monkeypatch):
    run = trial._run

    def wrong_in_16_bits(*asked):
        found = run(*asked)
        if found["exp_avg"].dtype == fp16:
            found["exp_avg"].neg_()
        return found

    monkeypatch.setattr(trial, "_run", wrong_in_16_bits)
    why = trial.check("triton", Case("update", fp16, fp16, (256, 512, 256), "drop"), CPU)
    assert why.startswith("exp_avg of a matrix 40 x 72 has an error of 2.0")


def flipped(inverse):
    return lambda power: -inverse(power)


def lost(tile_table):
    return lambda *arguments: tile_table(*arguments)[:-1]


def broken(inverse):
    return lambda power: inverse(power) * float("nan")


@pytest.mark.parametrize("way, module", [("triton", step_kernels), ("cublas", cublas_kernels), ("tma", step_kernels)])
@pytest.mark.parametrize("name, fault", [("inverse", flipped), ("inverse", broken), ("tile_table", lost)])
def test_what_is_made_wrong_is_rejected_and_the_step_is_right(way, module, name, fault, monkeypatch):
    where = plan if name == "tile_table" else module
    monkeypatch.setattr(where, name, fault(getattr(where, name)))
    monkeypatch.setattr(dispatch, "has_kernels", lambda device: True)
    case = Case("step", fp32, fp16, (48, 40, 40), "drop")
    # a lost tile is lost by both ways: the other one is not asked
    monkeypatch.setattr(choice, "WAYS", (way, "torch"))
    with pytest.warns(UserWarning, match=f"backend '{way}' is wrong on this machine"):
        choice.choose("cpu", [case], lambda *asked: trial.check(*asked, CPU), lambda *asked: 1.0)

    basis = SpectralBasis.of(torch.randn(48, 40), precision="fp16")
    G = torch.randn(48, 40)
    expected = torch.empty_like(G)
    rescale_gradient(G, basis.U, basis.S, basis.Vh, 0.5, "drop", expected)
    assert GSR(0.5, "drop").transform([(G, G, basis, {})])[0].all()
    assert torch.equal(G, expected)


def test_the_clock_is_the_gpus_own_and_draws_nothing_of_the_callers(monkeypatch):
    current = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            # on a stream of the current device
            assert current == [CPU]

        def synchronize(self):
            pass

        def elapsed_time(self, other):
            return 1.0

    @contextmanager
    def on(device):
        current.append(device)
        yield
        current.pop()

    monkeypatch.setattr(trial, "on", on)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    before = torch.get_rng_state()
    assert trial.clock("torch", Case("update", fp32, fp16, (24, 16, 16), "drop"), CPU) == 1e-3
    assert torch.equal(torch.get_rng_state(), before)
