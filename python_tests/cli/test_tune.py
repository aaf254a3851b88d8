"""`tune` with stand-ins for the check and the clock of a GPU that is not there."""

import pytest

from gsr_kernels.__main__ import main
from gsr_kernels.backends import choice
from gsr_kernels.backends.choice import Decisions
from gsr_kernels.backends.triton import trial
from gsr_kernels.cli import tune

SECONDS = {"triton": 3e-3, "cublas": 1e-3, "torch": 2e-3, "tma": 5e-3, "cutlass": 6e-3}


@pytest.fixture(autouse=True)
def gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choice, "decisions", Decisions("steps.json"))
    monkeypatch.setattr(tune, "has_kernels", lambda device: True)
    monkeypatch.setattr(trial, "check", lambda way, case, device: "NaN" if (way, case.op) == ("cublas", "step") else "")
    monkeypatch.setattr(trial, "clock", lambda way, case, device: SECONDS[way])


def table(capsys, *arguments):
    assert main(["tune", "--device", "cpu", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_line_for_each_kind_of_step(capsys):
    with pytest.warns(UserWarning, match="'cublas' is wrong on this machine"):
        head, *lines = table(capsys, "--shape", "64x96", "--shape", "60x90")
    assert head.split() == ["ms", "triton", "cublas", "torch", "tma", "cutlass", "used"]
    found = {line.split()[0]: line.split()[-6:] for line in lines}
    assert found == {"step": ["3", "wrong", "2", "5", "6", "torch"], "update": ["3", "1", "2", "5", "6", "cublas"]}
    # decided now: nothing is checked again, and info says so
    assert table(capsys, "--shape", "64x96")[1:] == lines
    assert main(["info"]) == 0
    assert (
        "step bfloat16 float16 drop wide whole 64 128 64: torch, measured here: triton 3 ms" in capsys.readouterr().out
    )
    # a truncated basis keeps the rest
    with pytest.warns(UserWarning):
        assert "keep wide truncated 64 128 8 " in table(capsys, "--shape", "64x96", "--rank", "8")[1]


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ([], "give MODEL_DIR, or a weight by --shape D1xD2"),
        (["--shape", "64"], "--shape must be D1xD2, as 8192x2048, got '64'"),
        (["--shape", "64x96", "--rank", "0"], "rank must lie in [1, 64]"),
    ],
)
def test_what_is_refused(arguments, reason, capsys):
    assert main(["tune", "--device", "cpu", *arguments]) == 2
    assert reason in capsys.readouterr().err


def test_without_a_gpu_there_is_nothing_to_choose(capsys, monkeypatch):
    monkeypatch.undo()
    assert main(["tune", "--device", "cpu", "--shape", "64x96"]) == 2
    assert "torch computes every step; there is nothing to choose" in capsys.readouterr().err
