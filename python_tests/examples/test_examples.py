"""Every example, run as a user would."""

import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gsr_kernels.__main__ import main
from python_tests.distributed.ranks import launch
from python_tests.integrations import mcore, zero

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs an example in an empty directory and returns what it printed."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def torchrun(monkeypatch, tmp_path):
    """Runs an example on some ranks of this machine and returns what each printed."""
    monkeypatch.chdir(tmp_path)
    return lambda name, world, *arguments, **more: launch(world, EXAMPLES / name, *arguments, **more)


def test_every_example_is_short_and_run_here():
    tested = set(re.findall(r'run\("(\w+\.py)"', Path(__file__).read_text()))
    examples = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert examples.keys() - {"tiny.py"} == tested
    assert max(examples.values()) < 80


def test_plain(run):
    printed = run("plain.py")
    assert "rank 16 of 16" in printed and re.search(r"task 1: loss .*'gsr/norm_ratio': 0\.", printed)


def test_resume(run):
    whole = run("resume.py", "--folder", "whole", "--steps", "40")
    run("resume.py", "--folder", "halves", "--steps", "20")
    half = run("resume.py", "--folder", "halves", "--steps", "40")
    assert half.startswith("steps 20 to 40") and half.split("loss")[1] == whole.split("loss")[1]


def test_hf_trainer(run):
    run("hf_trainer.py", "--folder", "whole", "--steps", "20")
    run("hf_trainer.py", "--folder", "halves", "--steps", "10")
    run("hf_trainer.py", "--folder", "halves", "--steps", "20", "--resume")
    whole, halves = (load_file(f"{name}/checkpoint-20/model.safetensors") for name in ("whole", "halves"))
    assert all((halves[name] == value).all() for name, value in whole.items())
    [events] = Path("whole").rglob("events.out.tfevents*")
    logged = EventAccumulator(str(events)).Reload()
    assert [event.step for event in logged.Scalars("train/gsr/norm_ratio")] == [5, 10, 15, 20]
    assert 0 < logged.Scalars("train/gsr/norm_ratio")[0].value < 1


def test_trl_sft(run):
    assert "gsr/norm_ratio" in run("trl_sft.py")


def test_accelerate(run):
    assert run("accelerate_loop.py").strip().endswith("8 batches, 4 optimizer steps")


def test_lightning(run):
    whole = run("lightning_fit.py", "--folder", "whole")
    run("lightning_fit.py", "--folder", "halves", "--epochs", "1")
    [checkpoint] = Path("halves").rglob("*.ckpt")
    resumed = run("lightning_fit.py", "--folder", "halves", "--resume", str(checkpoint))
    final = [text.strip().splitlines()[-1] for text in (whole, resumed)]
    assert final[0] == final[1] and "gsr/norm_ratio" in final[0]


def test_own_tasks(run, capsys):
    """As the page has a reader do it: every command of it, one after the other."""
    page = (EXAMPLES.parent / "docs" / "trainers" / "own_tasks.md").read_text()
    commands = re.findall(r"^python (?:-m gsr_kernels|examples/own_tasks.py) (.*)$", page, re.M)
    written, first, resumed, grown, swept = [command.split() for command in commands if re.search(r"\bown\b", command)]
    run("own_tasks.py", *written)
    assert main(first) == 0
    table = capsys.readouterr().out
    assert re.search(r"^MTL +all at once", table, re.M)
    assert main(resumed) == 0
    [copied] = re.findall(r"^cp (.*)$", page, re.M)
    shutil.copy(*copied.split())
    assert main(grown) == 0
    assert "OSF      3-colours-again" in Path("own/run/table.txt").read_text()
    assert main(swept) == 0 and "Chosen among the values of --sweep" in Path("own/sweep/table.txt").read_text()
    assert {"table.txt", "forgetting.png", "spectra.png"} <= {path.name for path in Path("own/run").iterdir()}


def test_task_sequence(run):
    lines = [line for line in run("task_sequence.py").splitlines() if line.startswith("after task")]
    assert [len(line.split(", ")) for line in lines] == [1, 2, 3]


def test_ddp(torchrun):
    printed = torchrun("ddp.py", 2)
    assert all("0 parameters differ from rank 0's" in text for text in printed)


def test_fsdp2(torchrun):
    first = torchrun("fsdp2.py", 4, "--folder", "run", "--steps", "8")
    second = torchrun("fsdp2.py", 2, "--folder", "run", "--steps", "12")
    lines = [line.split() for line in (first[0] + second[0]).splitlines()]
    assert [int(step) for _, step, _, _ in lines] == list(range(12)) and not any(first[1:] + second[1:])
    # of 4 processes throughout
    straight = [4.154789, 3.971306, 3.815353, 3.688083, 3.558702, 3.464383, 3.358852, 3.295502, 3.203374, 3.161106,
                3.032975, 2.973331]  # fmt: skip
    assert [float(loss) for _, _, _, loss in lines] == pytest.approx(straight, rel=1e-3)


def test_hsdp_tp(torchrun):
    printed = torchrun("hsdp_tp.py", 4)
    assert "(Replicate(), _StridedShard(dim=0, sf=2), Shard(dim=0))" in printed[0] and not any(printed[1:])


def test_own_method_and_metric(run, monkeypatch, capsys):
    assert "Damped(strength=0.9)" in run("own_method.py")
    run("own_tasks.py", "--folder", "own")
    assert main(["continual", "methods", "own_method:Damped"]) == 0
    assert re.search(r"own_method:Damped rank .* your own\n(.*\n)* *strength +0.5 +a number", capsys.readouterr().out)
    flags = ["--model", "own/model", "--data", "own/tasks", "--steps", "2", "--batch", "8", "--out", "out"]
    methods = ["--method", "own_method:Damped,own_method:Noisy+gsr", "--sweep", "own_method:Damped.strength=0,1"]
    assert main(["continual", *flags, *methods, "--metric", "own_method:first_letter"]) == 0
    table = Path("out/table.txt").read_text()
    assert "score: answers that begin as the completion does, %" in table
    assert all(title in table for title in ("Damped strength=0", "Damped strength=1", "Noisy+GSR"))
    assert main(["continual", *flags[:-1], "bad", "--method", "own_method:Damped", "--set", "strength=2"]) == 2
    assert "--method own_method:Damped: strength must be in [0, 1], got 2.0" in capsys.readouterr().err


def test_deepspeed_zero(torchrun):
    prepared = {"before": [(zero.prepare,)]}
    torchrun("deepspeed_zero.py", 2, "--folder", "zero", "--steps", "2", **prepared)
    printed, _ = torchrun("deepspeed_zero.py", 2, "--folder", "zero", "--steps", "3", **prepared)
    assert printed.startswith("step 2 loss") and Path("zero", "latest").read_text() == "global_step3"


def test_megatron_core(torchrun):
    prepared = {"before": [(mcore.stay_on_a_cpu,)]}
    torchrun("megatron_core.py", 2, "--folder", "mcore", "--tensor", "2", "--steps", "2", **prepared)
    printed, _ = torchrun("megatron_core.py", 2, "--folder", "mcore", "--tensor", "2", "--steps", "3", **prepared)
    assert printed.startswith("step 2 loss") and Path("mcore", "step-000003", "metadata.json").exists()
