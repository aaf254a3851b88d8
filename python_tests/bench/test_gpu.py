"""The one command for a GPU, as far as it goes without one."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.gpu import __main__ as gpu
from bench.gpu import plan, session
from bench.gpu.plan import Part
from bench.results import COMMIT, FILE, conditions

ROOT = Path(__file__).parents[2]


@pytest.fixture
def parts(monkeypatch):
    """Takes the place of the plan."""

    def parts(**found):
        monkeypatch.setattr(plan, "PARTS", found)
        monkeypatch.setattr(plan, "ALL", found)
        monkeypatch.setattr(session.candidates, "here", lambda: "90a")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    return parts


def test_a_dry_run_prints_the_plan(capsys):
    assert gpu.main(["--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed and part.worth in printed for name, part in plan.PARTS.items())


def test_all_of_it_fits_into_ten_minutes():
    assert sum(part.seconds for part in plan.PARTS.values()) <= 570


# a part that adds a row
WRITE = "import os, time; open(os.environ['BENCH_RESULTS'] + '/results.csv', 'a').write('{}\\n')"


def test_parts_end_one_by_one(parts, tmp_path):
    before = FILE.read_text()
    parts(
        right=Part(1, "", ["-c", "print('ran')"]),
        wrong=Part(1, "", ["-c", f"{WRITE.format('of the wrong one')}; raise SystemExit(3)"]),
        endless=Part(
            1, "", ["-c", f"{WRITE.format('of the endless one')}; print('begun', flush=True); time.sleep(60)"]
        ),
        late=Part(30, "", ["-c", "print('late')"]),
    )
    assert gpu.main(["--seconds", "5", "--out", str(tmp_path)]) == 1
    outcomes = dict(line.split(maxsplit=1) for line in (tmp_path / "outcomes.txt").read_text().splitlines())
    assert "done in" in outcomes["right"] and "failed with 3" in outcomes["wrong"]
    assert "cut off" in outcomes["endless"] and outcomes.keys() == plan.PARTS.keys()
    log = (tmp_path / "log.txt").read_text()
    assert "ran\n" in log and "begun\n" in log
    # the rows so far, to which the parts add theirs, however they end
    assert (tmp_path / "results.csv").read_text() == before + "of the wrong one\nof the endless one\n"
    assert len(list(tmp_path.iterdir())) <= 8


def test_a_session_that_is_terminated_ends_its_part(tmp_path):
    beside = tmp_path / "alive"
    part = f"import os, time; open({str(beside)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    script = f"""
import signal, sys
from pathlib import Path
from bench.gpu import session
from bench.gpu.plan import Part
signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
parts = {{"done": Part(1, "", ["-c", "1"]), "endless": Part(60, "", ["-c", {part!r}])}}
session.run(parts, 90, Path({str(tmp_path)!r}))
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while not (beside.is_file() and beside.read_text()):
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int(beside.read_text()), 0)
    assert "done in" in (tmp_path / "outcomes.txt").read_text()


# what a rehearsal is for: a module, an argument and a path that are not there, and a name inside a case
WRONG = {
    "module": ["-m", "bench.gpus"],
    "argument": plan.case("memory", "--ranks", "full"),
    "path": plan.case("memory", "--out", "nowhere/rows.csv"),
    "case": plan.case("memories"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_rehearsal_finds_what_is_not_there(parts, tmp_path, what):
    parts(**{what: Part(60, "", WRONG[what])})
    assert gpu.main(["--rehearse", "--out", str(tmp_path)]) == 1
    assert "failed with" in (tmp_path / "outcomes.txt").read_text()
    assert {"module": "No module named bench.gpus", "argument": "unrecognized arguments: --ranks", "path": "no folder",
            "case": "invalid choice"}[what] in (tmp_path / "log.txt").read_text()  # fmt: skip


def test_a_rehearsal_runs_all_of_it_as_a_gpu_would(tmp_path, monkeypatch):
    # what was decided before is not asked for again, were it not for its folder
    (tmp_path / "gsr_kernels").mkdir()
    (tmp_path / "gsr_kernels" / "steps.json").write_text("old")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    assert gpu.main(["--rehearse", "--out", str(tmp_path)]) == 0, (tmp_path / "log.txt").read_text()
    outcomes = (tmp_path / "outcomes.txt").read_text().splitlines()
    assert [line.split()[0] for line in outcomes] == list(plan.PARTS) and all(" done in " in line for line in outcomes)
    rows = (tmp_path / "results.csv").read_text()
    assert "a stand-in for a GPU" in rows and "graph" in rows
    assert "single_direction" in (tmp_path / "gpu_tests.csv").read_text()
    assert "update bfloat16" in (tmp_path / "gsr_kernels" / "steps.json").read_text()


@pytest.mark.parametrize("name", plan.ALL)
def test_every_part_names_what_is_there(name):
    command = plan.ALL[name].command
    if command[0] == "-m":
        assert command[1] == "pytest" or importlib.util.find_spec(command[1])
    else:
        assert (ROOT / command[0]).is_file()
    assert all((ROOT / word).exists() for word in command if word.startswith("python_tests/"))


def test_without_git_the_environment_says_the_commit(monkeypatch):
    monkeypatch.setenv(COMMIT, "abc123")
    assert conditions()["commit"] == "abc123"


@pytest.mark.parametrize(("arguments", "said"), [([], "no CUDA GPU"), (["tset"], "no part")])
def test_what_cannot_be_run_is_said(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(arguments)
    assert said in capsys.readouterr().err


def test_no_part_hides_behind_a_command():
    assert not (plan.ALL.keys() - {"warm"}) & gpu.COMMANDS.keys()


@pytest.mark.parametrize("command", [[], *([name] for name in gpu.COMMANDS if name != "stand-in")], ids=str)
def test_every_command_says_what_it_does(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        gpu.main([*command, "--help"])
    assert f"usage: {' '.join(['python -m bench.gpu', *command])} [-h]" in capsys.readouterr().out
