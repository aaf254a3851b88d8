"""The same run by two processes: to the same numbers as by one, and on from where it was killed."""

import contextlib
import io
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from transformers import Trainer, trainer

from gsr_kernels.__main__ import main
from gsr_kernels.continual import plots
from gsr_kernels.continual.evaluators import EVALUATORS
from gsr_kernels.continual.examples import Example, Source
from gsr_kernels.continual.ranks import FailedElsewhere, joined
from gsr_kernels.continual.score import score
from gsr_kernels.continual.stop import listening, stop_if_told
from gsr_kernels.continual.trainer import Watch
from python_tests.continual.tiny import save_model, save_tasks
from python_tests.distributed.ranks import run, start

# epochs that end with a step of fewer rows
QUICK = ["--batch", "8", "--epochs", "1.5", "--lr", "1e-3", "--save-every", "2", "--method", "gsr"]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    model, data = save_model("causal", folder / "model"), save_tasks(folder / "data", ("first", "second"), rows=37)
    return ["continual", "--model", model, "--data", data, *QUICK]


def as_by_torchrun():
    rank, world = str(dist.get_rank()), str(dist.get_world_size())
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world, LOCAL_WORLD_SIZE=world, HF_HUB_OFFLINE="1")
    plots.draw_forgetting = plots.draw_spectra = lambda results, path: None


def learned(*runs):
    """What the command printed here in runs of these arguments."""
    as_by_torchrun()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert [main(arguments) for arguments in runs] == [0] * len(runs)
    return printed.getvalue()


def drawn(*runs):
    """What each step draws here, as dropout would, in runs of these arguments; and what is not in the checkpoints when
    the first rank removes older ones, though the other takes its time.
    """
    numbers, lacking = [], []
    on_step_end, save, rotate = Watch.on_step_end, Trainer._save_rng_state, trainer.rotate_checkpoints

    def draws(self, *given, **named):
        numbers.append(torch.rand(()).item())
        on_step_end(self, *given, **named)

    def slowly(self, folder):
        time.sleep(0.1 * dist.get_rank())
        save(self, folder)

    def looks(output_dir, **named):
        lacking.extend(path for path in Path(output_dir).iterdir() if len(list(path.glob("rng_state_*.pth"))) < 2)
        rotate(output_dir=output_dir, **named)

    Watch.on_step_end, Trainer._save_rng_state, trainer.rotate_checkpoints = draws, slowly, looks
    learned(*runs)
    return numbers, lacking


def scored(folder):
    """The score of programs, and how many are run here."""
    rows = tuple(Example(f"{number}", "", prefix="", test=f"assert {number}") for number in range(3))
    kind = SimpleNamespace(asks=("text",), answers=lambda model, own, asked, new_tokens: ["x = 1"] * len(own))
    seen, programs = [], EVALUATORS["pass@1"]
    EVALUATORS["pass@1"] = programs._replace(total=lambda *given: seen.append(len(given[0])) or programs.total(*given))
    return score(kind, None, Source("code", "", (), rows, "pass@1"), 4, Path(folder) / "code.jsonl"), seen


def told():
    """How this process ends where the second alone hears a signal: all at the next question."""
    with listening():
        if dist.get_rank():
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            stop_if_told()
        except SystemExit as stopped:
            return stopped.code


def killed(arguments):
    """One process is killed between two checkpoints of the second task."""

    def on_step_end(self, args, state, control, **kwargs):
        if args.output_dir.endswith("second") and state.global_step == 5 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    Watch.on_step_end = on_step_end
    learned(arguments)


def ended(*runs):
    """How each run ended here, and what it said; the second rank alone lacks what is named LACKING."""
    as_by_torchrun()
    found = []
    for arguments in runs:
        here = [text.replace("LACKING", "absent" if dist.get_rank() else "") for text in arguments]
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.suppress(FailedElsewhere):
            assert main(here) == 2
        found.append(said.getvalue().rpartition("error: ")[2])
    return found


def measured(out):
    return {part: json.loads((out / "results.json").read_text())[part] for part in ("matrices", "spectra")}


def flat(data):
    if isinstance(data, dict | list):
        return [number for one in (data.values() if isinstance(data, dict) else data) for number in flat(one)]
    return [data] if isinstance(data, int | float) else []


@pytest.mark.usefixtures("blank_pictures")
def test_two_processes_learn_what_one_does_and_go_on_after_a_kill(arguments, tmp_path):
    assert main([*arguments, "--micro-batch", "4", "--out", str(tmp_path / "alone")]) == 0
    alone = flat(measured(tmp_path / "alone"))
    runs = {name: [*arguments, *flags, "--out"] for name, flags in {"ddp": [], "fsdp": ["--fsdp"]}.items()}
    [printed, other] = run(2, (learned, *([*run, str(tmp_path / name)] for name, run in runs.items())))["learned"]
    assert other == ""
    for name in runs:
        assert (tmp_path / name / "table.txt").read_text() in printed
        # AdamW makes much of a rounding where gradients are small
        assert flat(measured(tmp_path / name)) == pytest.approx(alone, rel=1e-4, abs=1e-5)

    resumed = []
    for name, arguments in runs.items():
        cut = tmp_path / f"{name}-cut"
        _, failures, codes = start(2, (killed, [*arguments, str(cut)]))
        # the other does not wait for it
        assert codes[1] == -signal.SIGKILL and len(failures) == 1
        [checkpoint] = Path(cut, "work/seed-0/gsr/training/second").glob("checkpoint-*")
        assert checkpoint.name == "checkpoint-4"
        # each rank has written what it holds of the weights
        parts = sorted(path.name for path in checkpoint.glob("weights/*.distcp"))
        assert parts == (["__0_0.distcp", "__1_0.distcp"] if name == "fsdp" else [])
        resumed.append([*arguments, str(cut), "--resume"])
    run(2, (learned, *resumed))
    for name in runs:
        assert measured(tmp_path / f"{name}-cut") == measured(tmp_path / name)


@pytest.mark.usefixtures("blank_pictures")
def test_two_processes_learn_by_eblora_and_with_an_encoder_decoder_what_one_does(arguments, tmp_path):
    seq2seq = [*arguments[:2], save_model("seq2seq", tmp_path / "model"), *arguments[3:5], *QUICK[:6]]
    runs = {
        "causal": [*arguments[:5], *QUICK[:6], "--method", "eblora", "--adapter-lr", "1e-3"],
        "seq2seq": [*seq2seq, "--method", "seqft,eblora", "--adapter-lr", "1e-3", "--steps", "4"],
    }
    for name, flags in runs.items():
        assert main([*flags, "--micro-batch", "2", "--out", str(tmp_path / f"{name}-alone")]) == 0
    saving = ["--save-every", "3", "--out"]
    both = run(2, (drawn, *([*flags, *saving, str(tmp_path / name)] for name, flags in runs.items())))["drawn"]
    (first, lacking), (second, _) = both
    assert len(first) == len(second) and not set(first) & set(second) and not lacking
    for name in runs:
        alone = flat(measured(tmp_path / f"{name}-alone"))
        assert flat(measured(tmp_path / name)) == pytest.approx(alone, rel=1e-4, abs=1e-5)


def test_each_process_runs_the_programs_of_its_own_rows(tmp_path):
    for (value, seen), count in zip(run(2, (scored, tmp_path))["scored"], (2, 1)):
        assert value == pytest.approx(200 / 3) and seen == [count]
    assert len((tmp_path / "code.jsonl").read_text().splitlines()) == 3


def test_a_signal_that_one_process_hears_ends_all():
    assert run(2, (told,))["told"] == [143, 143]


def test_a_restart_by_torchrun_finds_no_addresses_of_before(monkeypatch):
    # what torchrun has on one machine, at every restart the same
    kept, seen = dist.HashStore(), []
    monkeypatch.setattr(dist, "rendezvous", lambda url: iter([(kept, 0, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda *given, store, **more: seen.append(store))
    for function in ("barrier", "destroy_process_group"):
        monkeypatch.setattr(dist, function, lambda: None)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    for attempt in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        with joined():
            assert not seen[-1].check(["address"])
            seen[-1].set("address", attempt)
    # several machines count their restarts each for itself
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with joined():
        assert seen[-1] is kept


def test_an_error_on_one_rank_or_on_all_is_said_once(arguments, tmp_path):
    known = [*arguments, "--retain", "LACKING" + str(tmp_path / "text.txt")]
    (tmp_path / "text.txt").write_text("the river and the stone " * 9)
    runs = [known, [*arguments, "--lr", "-1"], [*arguments, "--lr", "1e30"]]
    out = [["--out", str(tmp_path / str(number))] for number in range(len(runs))]
    [first, second] = run(2, (ended, *(run + more for run, more in zip(runs, out))))["ended"]
    assert first[0] == "" and "text.txt is no file" in second[0]
    assert "--lr must be positive" in first[1] and "lr 1e+30 is too high" in first[2]
    assert not any(second[1:])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch", "3"], "--batch 3 must be a multiple of 2, the 2 processes"),
        (["--micro-batch", "8"], "--batch 8 must be a multiple of 16, --micro-batch 8 of each of the 2 processes"),
        (["--fsdp", "--method", "osf"], "--fsdp has seqft, gsr, perft, mtl, not osf: leave it out"),
        (["--fsdp", "--method", "o-lora"], "--fsdp has seqft, gsr, perft, mtl, not o-lora: leave it out"),
        (["--fsdp", "--bf16", "--dtype", "bfloat16"], "--fsdp with --bf16 wants weights in float32"),
    ],
)  # fmt: skip
def test_what_several_processes_cannot_is_refused(flags, message, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gsr_kernels.continual.checks.world", lambda: 2)
    assert main([*arguments, *flags, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
