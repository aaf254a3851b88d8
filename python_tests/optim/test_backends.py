"""The kinds of step that attach() has a GPU decide about, with a stand-in for the decision."""

import pytest
import torch
from torch import nn

from gsr_kernels import GSR, GSRAdamW, InSpan, attach
from gsr_kernels.backends.triton import trial
from gsr_kernels.optim import backends


@pytest.fixture
def settled(monkeypatch):
    cases = []
    monkeypatch.setattr(backends, "has_kernels", lambda device: True)
    monkeypatch.setattr(backends, "interpreted", lambda: False)
    # a CPU's bases are float32, which the kernels leave to torch on a GPU
    monkeypatch.setattr(backends, "unsupported", lambda *form: "")
    monkeypatch.setattr(trial, "settle", lambda device, found: cases.extend(found))
    return cases


def model():
    return nn.Sequential(nn.Linear(24, 16, bias=False), nn.Linear(16, 16, bias=False))


def test_each_kind_of_step_is_asked_once(settled):
    net = model()
    attach(net, torch.optim.SGD(net.parameters(), 0.1), [GSR(0.5), InSpan()])
    assert {(case.op, case.shape, case.out_of_span) for case in settled} == {
        ("step", (16, 24, 16), "drop"),
        ("step", (16, 16, 16), "drop"),
    }
    settled.clear()
    GSRAdamW(model(), rho=0.5)
    assert {case.op for case in settled} == {"update"} and len(settled) == 2


def test_what_is_asked_for_by_name_is_not_decided(settled, monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "torch")
    net = model()
    attach(net, torch.optim.SGD(net.parameters(), 0.1), rho=0.5)
    assert not settled
