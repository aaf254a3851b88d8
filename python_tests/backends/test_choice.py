"""The machine's choice among ways to step: by stand-ins whose errors and times are given."""

import json
import math
import time
import warnings

import pytest
import torch

from gsr_kernels.backends import choice, dispatch
from gsr_kernels.backends.choice import Case, Decisions, choose
from gsr_kernels.backends.dispatch import VARIABLE, backend_for

GPU = torch.device("cuda", 0)
WHOLE = Case("step", torch.bfloat16, torch.float16, (2048, 2048, 2048), "drop")
SMALL = Case("step", torch.bfloat16, torch.float16, (256, 256, 256), "drop")


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choice, "decisions", Decisions("steps.json"))
    monkeypatch.setattr(choice, "machine", lambda device: "some GPU")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return tmp_path / "gsr_kernels" / "steps.json"


class Ways:
    """Stand-ins of the ways: seconds of each, and why some are wrong."""

    def __init__(self, seconds=(1.0, 2.0, 3.0, 4.0, 5.0), **wrong):
        self.seconds, self.wrong, self.timed = dict(zip(choice.WAYS, seconds)), wrong, []

    def check(self, way, case):
        found = self.wrong.get(way, "")
        if isinstance(found, Exception):
            raise found
        return found

    def clock(self, way, case):
        self.timed.append((way, case.shape))
        if isinstance(self.seconds[way], Exception):
            raise self.seconds[way]
        return self.seconds[way]

    def choose(self, *cases, **settings):
        return choose("some GPU", cases, self.check, self.clock, **settings)


def asked(case):
    return backend_for(case.op, GPU, case.gradient, case.basis, case.shape, case.out_of_span)


@pytest.mark.parametrize(
    "seconds, best",
    [
        ((1.0, 2, 3, 4, 5), "triton"),
        ((3.0, 1, 2, 4, 5), "cublas"),
        ((3, 2, 1, 4, 5), "torch"),
        ((3, 2, 2, 1, 5), "tma"),
        ((3, 2, 2, 4, 1), "cutlass"),
    ],
)
def test_the_fastest_way_is_used_and_remembered(seconds, best, machine):
    assert asked(WHOLE) == ("triton", "on a CUDA device")
    ways = Ways(seconds)
    ways.choose(WHOLE)
    assert asked(WHOLE)[0] == best and "measured here: triton" in asked(WHOLE)[1]
    # matrices between the same powers of two share a decision, others do not
    assert asked(Case("step", torch.bfloat16, torch.float16, (1030, 1030, 1030), "drop"))[0] == best
    assert asked(SMALL) == ("triton", "on a CUDA device")
    # another process reads it, and times nothing
    choice.decisions._known.clear()
    assert asked(WHOLE)[0] == best
    again = Ways()
    again.choose(WHOLE)
    assert not again.timed and list(json.loads(machine.read_text())) == ["some GPU"]


def test_what_is_asked_for_goes_before_what_is_faster(monkeypatch):
    Ways((3, 1, 2, 4, 5)).choose(WHOLE)
    form = GPU, WHOLE.gradient, WHOLE.basis, WHOLE.shape, "drop"
    assert backend_for("step", *form, "triton") == ("triton", "asked for")
    monkeypatch.setattr(dispatch, "lacking", lambda way, device: "")
    for named in choice.WAYS:
        monkeypatch.setenv(VARIABLE, named)
        assert asked(WHOLE) == (named, "asked for")
    # of other operators there is one kernel
    assert backend_for("sketch", GPU)[0] == "triton"
    monkeypatch.setenv(VARIABLE, "numpy")
    with pytest.raises(
        ValueError, match="GSR_KERNELS_BACKEND must be one of auto, torch, triton, cublas, tma, cutlass, cuda"
    ):
        asked(WHOLE)


@pytest.mark.parametrize("fault", ["relative error 1.4e+00", RuntimeError("out of resource: shared memory")])
def test_a_way_that_is_wrong_is_named_and_never_used(fault):
    ways = Ways((1, 2, 3, 4, 5), triton=fault)
    with pytest.warns(
        UserWarning, match="'triton' is wrong on this machine and is not used for 'step bfloat16"
    ) as said:
        ways.choose(WHOLE)
    assert len(said) == 1 and ("shared memory" in str(said[0].message)) == isinstance(fault, Exception)
    assert asked(WHOLE)[0] == "cublas" and "triton is wrong: " in asked(WHOLE)[1]
    assert "triton" not in dict(ways.timed)
    with pytest.warns(UserWarning):
        Ways((1, 1, 9, 1, 1), triton="NaN", cublas="NaN", tma="NaN", cutlass="NaN").choose(SMALL)
    assert asked(SMALL)[0] == "torch"


def test_a_way_that_a_machine_has_not_is_neither_wrong_nor_timed():
    ways = Ways((3, 2, 4, 1, 5), tma=None)
    ways.choose(WHOLE)
    assert asked(WHOLE)[0] == "cublas" and "tma" not in asked(WHOLE)[1] and "tma" not in dict(ways.timed)


def test_tma_is_not_taken_without_its_time():
    with pytest.warns(UserWarning):
        Ways(triton="NaN", cublas="NaN").choose(WHOLE, budget=0)
    assert asked(WHOLE)[0] == "torch" and "not timed" in asked(WHOLE)[1]


def test_timing_is_bounded_and_what_it_does_not_reach_is_checked(machine):
    with pytest.warns(UserWarning):
        ways = Ways(triton="an unwritten tile")
        ways.choose(SMALL, WHOLE, budget=1e-9)
    # the largest first
    assert {shape for _, shape in ways.timed} == {WHOLE.shape}
    assert asked(SMALL)[0] == "cublas" and "not timed" in asked(SMALL)[1]
    assert list(json.loads(machine.read_text())["some GPU"]) == [WHOLE.key]


def test_what_is_compiled_does_not_count_as_timing():
    ways = Ways((1e-6,) * 5)
    clock = ways.clock
    # a kernel that is compiled first
    ways.clock = lambda *asked: (time.sleep(2e-3), clock(*asked))[1]
    ways.choose(SMALL, WHOLE, budget=1e-3)
    assert {shape for _, shape in ways.timed} == {SMALL.shape, WHOLE.shape}


def test_a_way_without_the_memory_for_it_is_not_the_fastest_in_this_process(machine):
    full = torch.OutOfMemoryError("CUDA out of memory")
    Ways((full, 2, 1, 3, 4)).choose(WHOLE)
    assert asked(WHOLE)[0] == "torch"
    with pytest.warns(UserWarning, match="CUDA out of memory"):
        Ways((1, 2, 3, 4, 5), triton=full).choose(SMALL)
    assert asked(SMALL)[0] == "cublas"
    # the next process may have it
    assert not machine.exists()


def test_a_damaged_file_costs_a_measurement(machine):
    machine.parent.mkdir()
    for text in ("{", json.dumps({"some GPU": {WHOLE.key: "triton"}}), '{"some GPU": []}'):
        machine.write_text(text)
        choice.decisions._known.clear()
        assert asked(WHOLE) == ("triton", "on a CUDA device")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Ways((3, 1, 2, 4, 5)).choose(WHOLE)
        assert asked(WHOLE)[0] == "cublas"
    assert math.isfinite(choice.verdict("some GPU", WHOLE).seconds["torch"])
