"""The one command for a GPU, as far as it goes without one."""

import pytest
import torch

from bench.cases import OF_A_MODEL
from bench.gpu import __main__ as gpu
from bench.gpu import session
from bench.gpu.session import Part


def test_a_dry_run_predicts_every_part(capsys):
    assert gpu.main(["--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}, planned: {part.seconds} s" in printed for name, part in session.PARTS.items())
    assert all(f"\n{case} (planned" in printed for case in OF_A_MODEL)


def test_all_of_it_fits_into_ten_minutes():
    assert sum(part.seconds for part in session.PARTS.values()) <= 570


def test_parts_end_one_by_one(monkeypatch, capsys):
    parts = {
        "right": Part(["-c", "print('ran')"], 1),
        "wrong": Part(["-c", "raise SystemExit(3)"], 1),
        "endless": Part(["-c", "import time; time.sleep(60)"], 1),
        "late": Part(["-c", "print('ran')"], 30),
    }
    monkeypatch.setattr(session, "PARTS", parts)
    monkeypatch.setattr(session, "ALL", parts)
    monkeypatch.setattr(session.candidates, "here", lambda: "90a")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu.main(["--seconds", "3"]) == 1
    outcomes = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[-4:]}
    assert "done in" in outcomes["right"]
    assert "failed with 3" in outcomes["wrong"]
    assert "cut off" in outcomes["endless"]
    assert "left out" in outcomes["late"]


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "no CUDA GPU" in capsys.readouterr().err


def test_no_part_hides_behind_a_command():
    assert not session.ALL.keys() & gpu.COMMANDS.keys()


@pytest.mark.parametrize("command", [[], *([name] for name in gpu.COMMANDS)], ids=str)
def test_every_command_says_what_it_does(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        gpu.main([*command, "--help"])
    assert f"usage: {' '.join(['python -m bench.gpu', *command])} [-h]" in capsys.readouterr().out
