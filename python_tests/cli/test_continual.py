"""The command from its flags to its folder, on the demo's model and tiny tasks; every bad input."""

import json
import random
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from gsr_kernels.__main__ import main
from gsr_kernels.continual import folder, library
from gsr_kernels.continual.methods import BOUNDS, METHODS, TITLES
from gsr_kernels.continual.metrics import BEFORE, ResultMatrix
from gsr_kernels.continual.task_sequence import TaskSequence

TINY = ["--width", "32", "--layers", "1", "--pretrain-steps", "3", "--steps", "4", "--lr", "0.01", "--batch", "8"]
# of the methods that a run has by itself the one that writes, a little
OWN = ["--set", "lwf-own.own_tokens=8"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    generator = random.Random(0)
    for name in ("apples", "pears"):
        rows = [{"prompt": f"{name[0]}{i}", "completion": generator.choice(["yes", "no"])} for i in range(12)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


@pytest.fixture(autouse=True, scope="module")
def little_text():
    """A pretraining text that takes no time to read."""
    generator = random.Random(1)
    rows = [(b"", generator.randbytes(16)) for _ in range(50)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "general", lambda: rows)
        yield


def measured(folder):
    text = json.loads((folder / "results.json").read_text())
    return {title: [ResultMatrix.from_dict(matrix) for matrix in each] for title, each in text["matrices"].items()}


def test_from_the_flags_to_the_folder(data, tmp_path, capsys):
    out = tmp_path / "runs" / "one"
    assert main(["continual", "--data", data, "--out", str(out), "--seeds", "2", "--bounds", *TINY, *OWN]) == 0
    printed = capsys.readouterr().out
    assert {file.name for file in out.iterdir()} == {
        ".lock", "config.json", "forgetting.png", "loss.png", "results.json", "spectra.png", "table.txt", "work"
    }  # fmt: skip
    assert (out / "table.txt").read_text() in printed
    assert "GSR" in printed and "Seed by seed, + is better" in printed

    matrices = measured(out)
    titles = ["SeqFT", "GSR", "LwF-own", "PerFT", "MTL"]
    assert {title: len(each) for title, each in matrices.items()} == dict.fromkeys(titles, 2)
    for seqft, gsr, own, perft, mtl in zip(*matrices.values()):
        assert seqft.columns == ("general", "apples", "pears")
        for matrix in (gsr, own, perft, mtl):
            assert all(matrix.score(task, BEFORE) == seqft.score(task, BEFORE) for task in matrix.columns)
        # the first task alone is the first task of the sequence
        assert all(perft.score(task, "apples") == seqft.score(task, "apples") for task in seqft.columns)
        with pytest.raises(ValueError, match="after apples is missing"):
            mtl.score("apples", "apples")
        assert 0 <= mtl.ap() <= 100
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["steps"] == 4 and config["tasks"]["pears"]["rows"] == {"train": 12, "test": 0}
    assert config["threads"] == torch.get_num_threads()
    assert config["arguments"][0] == "continual" and str(out) in config["arguments"]
    assert [method["method"] for method in config["methods"].values()] == ["seqft", "gsr", "lwf-own", "perft", "mtl"]
    assert config["methods"]["GSR"].items() >= {"rho": 0.5, "out_of_span": None, "lr": 0.01, "rank": None}.items()
    settings = config["settings"]
    assert settings["weight_decay"] == 0.01 and settings["warmup"] == 0.05 and settings["max_grad_norm"] == 1.0
    assert settings["model"] is None and settings["demo"]["width"] == 32 and settings["demo"]["pretrain_steps"] == 3
    assert config["retained"]["general"]["rows"] == {"train": 50, "test": 0}
    for line in (out / "table.txt").read_text().splitlines():
        if line.startswith("SeqFT pears"):
            last = [matrix.ap() for matrix in matrices["SeqFT"]]
            assert line.split()[-1].startswith(f"{sum(last) / 2:.1f}±")


@pytest.mark.usefixtures("blank_pictures")
def test_equal_seeds_give_equal_numbers(data, tmp_path):
    for name in ("one", "two"):
        assert main(["continual", "--data", data, "--out", str(tmp_path / name), "--seeds", "1", *TINY, *OWN]) == 0
    one, two = measured(tmp_path / "one"), measured(tmp_path / "two")
    assert one == two
    assert "One seed cannot tell" in (tmp_path / "one" / "table.txt").read_text()


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize("name", TITLES)
def test_every_method_runs(name, data, tmp_path):
    out = tmp_path / "out"
    assert main(["continual", "--data", data, "--out", str(out), "--method", name, "--seeds", "1", *TINY]) == 0
    assert list(measured(out)) == [TITLES[name]]
    assert TITLES[name] in (out / "table.txt").read_text()
    assert (out / "forgetting.png").exists() == (out / "spectra.png").exists() == (name not in BOUNDS)


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize("error", [KeyboardInterrupt, FloatingPointError])
def test_finished_seeds_survive_what_ends_the_run(error, data, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    arguments = ["continual", "--data", data, "--method", "gsr", *TINY]
    assert main([*arguments, "--out", str(whole), "--seeds", "1"]) == 0
    learn = TaskSequence.learn

    def ends(sequence, name):
        if sequence.seed == 1:
            raise error
        return learn(sequence, name)

    monkeypatch.setattr(TaskSequence, "learn", ends)
    with suppress(KeyboardInterrupt):
        main([*arguments, "--out", str(cut), "--seeds", "3"])
    assert {file.name for file in cut.iterdir()} == {".lock", "config.json", "results.json", "table.txt", "work"}
    assert measured(cut) == measured(whole)
    assert "Seeds: 1 of 3, unfinished;" in (cut / "table.txt").read_text()
    monkeypatch.setattr(TaskSequence, "learn", learn)
    assert main([*arguments, "--out", str(cut), "--seeds", "3", "--resume"]) == 0
    assert [len(each) for each in measured(cut).values()] == [3] and measured(cut)["GSR"][0] == measured(whole)["GSR"][
        0
    ]


def test_the_commit_is_that_of_the_checkout(tmp_path, monkeypatch):
    package = tmp_path / "gsr_kernels" / "__init__.py"
    package.parent.mkdir()
    package.write_text("")
    monkeypatch.setattr(folder.gsr_kernels, "__file__", str(package))
    assert folder.commit() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    assert re.fullmatch("[0-9a-f]{40}", folder.commit())
    package.write_text("changed = True")
    assert re.fullmatch("[0-9a-f]{40}-dirty", folder.commit())


@pytest.mark.usefixtures("blank_pictures")
def test_bounds_by_name_stand_where_they_are_named(data, tmp_path):
    out = tmp_path / "out"
    arguments = ["--data", data, "--out", str(out), "--method", "mtl,seqft", "--bounds", "--seeds", "1", *TINY]
    assert main(["continual", *arguments]) == 0
    assert list(measured(out)) == ["MTL", "SeqFT", "PerFT"]


@pytest.mark.usefixtures("blank_pictures")
def test_settings_by_method_a_sweep_and_methods_that_are_joined(data, tmp_path):
    out = tmp_path / "out"
    flags = ["--method", "sr+gsr,psp,o-lora+ps-lora", "--set", "sr.lam=1e-3", "--set", "psp.lr=2e-2"]
    flags += ["--set", 'psp.heads={"q_proj": 4}', "--set", "ps-lora.lam=0.2", "--set", "o-lora+ps-lora.rank=2"]
    flags += ["--sweep", "gsr.rho=0,1", "--sweep", "epochs=1,2", "--seeds", "5,"]
    assert main(["continual", "--data", data, "--out", str(out), *TINY, *flags]) == 0
    told = json.loads((out / "config.json").read_text())["methods"]
    joined, grid = (
        [f"SR+GSR gsr.rho={rho},epochs={epochs}" for rho in (0, 1) for epochs in (1, 2)],
        ("epochs=1", "epochs=2"),
    )
    assert list(measured(out)) == list(told) == [
        *joined, *(f"{title} {each}" for title in ("PSP", "O-LoRA+PS-LoRA") for each in grid)
    ]  # fmt: skip
    assert told[joined[-1]].items() >= {"sr.lam": 1e-3, "gsr.rho": 1.0, "epochs": 2.0, "lr": 0.01}.items()
    assert told["PSP epochs=1"].items() >= {"lr": 0.02, "heads": {"q_proj": 4}}.items()
    assert told["O-LoRA+PS-LoRA epochs=2"].items() >= {"o-lora.lam": 0.5, "ps-lora.lam": 0.2, "rank": 2}.items()
    assert sorted(path.name for path in (out / "work").iterdir()) == ["seed-5"]
    assert "No value of --sweep is chosen" in (out / "table.txt").read_text()
    # a value, a seed and a method more
    assert (
        main(["continual", str(out), "--resume", "--seeds", "7,", "--sweep", "gsr.rho=0.5", "--method", "seqft"]) == 0
    )
    assert [title for title in measured(out) if title not in told] == [
        "SR+GSR gsr.rho=0.5,epochs=1", "SR+GSR gsr.rho=0.5,epochs=2", "SeqFT epochs=1", "SeqFT epochs=2"
    ]  # fmt: skip
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["seeds"] == [5, 7] and config["methods"].items() >= told.items()
    adapter = out / "work/seed-5/o-lora+ps-lora.epochs=1/models/pears/task-002/adapter_config.json"
    assert json.loads(adapter.read_text())["r"] == 2


@pytest.mark.usefixtures("blank_pictures")
def test_validation_rows_choose_in_a_run_that_goes_on(data, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--data", data, "--out", str(out), *TINY, "--seeds", "1", "--method", "seqft", "--metric", "exact"]
    assert main(["continual", *flags, "--validation", "0"]) == 2
    assert "--validation 0.0 leaves apples, pears without validation rows: give a share" in capsys.readouterr().err
    flags += ["--validation", "0.25", "--keep-models", "--sweep"]
    assert main(["continual", *flags, "lr=1e-9,1e-2", "--order", "apples"]) == 0
    assert main(["continual", str(out), "--resume", "--sweep", "lr=2e-2", "--order", "apples,pears"]) == 0
    found = json.loads((out / "results.json").read_text())
    titles = [f"SeqFT lr={lr}" for lr in ("1e-09", "0.01", "0.02")]
    assert list(found["validation"]) == titles and found["chosen"]["SeqFT"].keys() == set(titles)
    cells = found["validation"]["SeqFT lr=0.01"][0]
    assert cells["known"] == [] and all(None not in row for row in cells["cells"]) and len(cells["cells"]) == 3
    answers = out / "work/seed-0/seqft.lr=0.01/answers/apples"
    # of 12 rows two are scored, and of the ten left a quarter
    lines = {path.parent.name: len(path.read_text().splitlines()) for path in answers.rglob("pears.jsonl")}
    assert lines == {"apples": 2, "validation": 2}
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["validation"] == 0.25 and config["tasks"]["pears"]["rows"] == {"train": 12, "test": 0}
    assert main(["continual", str(out), "--resume", "--validation", "0.5"]) == 2
    assert "settings validation was 0.25 in" in capsys.readouterr().err


def test_help_fits_two_screens_and_the_page_explains_what_it_leaves_out(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = []
    for flag in ("--help", "--help-all"):
        assert refused(["continual", flag]) == 0
        shown.append(capsys.readouterr().out)
    common, every = (set(re.findall(r"--[a-z][a-z-]+", text)) for text in shown)
    assert len(shown[0].splitlines()) <= 50 and common < every
    page = (Path(__file__).parents[2] / "docs/trainers/own_tasks.md").read_text()
    rare = {flag for flag in every - common if not flag.startswith("--no-")} - {"--help", "--known"}
    assert rare and all(flag in page for flag in rare), [flag for flag in rare if flag not in page]


def test_what_methods_have_is_listed(capsys):
    assert main(["continual", "methods"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n{name} " in listed for name in METHODS)
    assert "out_of_span none" in listed and "Spectral Regularization" in listed


@pytest.mark.usefixtures("blank_pictures")
def test_a_rank_is_a_number_or_a_share(data, tmp_path):
    for rank in ("3", "0.5"):
        out = tmp_path / rank
        arguments = ["--data", data, "--out", str(out), "--method", "gsr", "--rank", rank, "--seeds", "1", *TINY]
        assert main(["continual", *arguments]) == 0
        assert json.loads((out / "config.json").read_text())["settings"]["rank"] == float(rank)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rho", "1.5"], "--rho must be a finite number in [0, 1]"),
        (["--rho", "nan", "--method", "seqft"], "--rho must be a finite number in [0, 1]"),
        (
            ["--rho", "0.5", "--method", "seqft,psp"],
            "--rho is read by gsr, gsr-lora, none of which",
        ),
        (
            ["--rank", "2", "--method", "seqft,mtl"],
            "--rank is read by gsr, gsr-full, psp, osf, osf-uniform, osf-schedule, sr, none",
        ),
        (["--rank", "0"], "--rank must be a number of directions from 1 on or a share in (0, 1), got 0"),
        (["--rank", "1.5"], "--rank must be a number of directions"),
        (["--rank", "nan"], "--rank must be a number of directions"),
        (["--rank", "1000"], "--rank must lie in [1, 32]"),
        (["--rank", "2", "--method", "psp"], "--rank must be None for PSP"),
        (["--adapter-lr", "0", "--method", "seqlora"], "--adapter-lr must be positive and finite, got 0.0"),
        (["--adapter-rank", "0", "--method", "seqlora"], "--adapter-rank must be at least 1, got 0"),
        (
            ["--adapter-rank", "2"],
            "--adapter-rank is read by seqlora, inclora, o-lora, ps-lora, eblora",
        ),
        (["--rank", "many"], "argument --rank: rank must be a number of directions"),
        (["--method", "magic"], "--method 'magic' is unknown; there are seqft, gsr"),
        (["--method", "gsr,gsr"], "--method gsr is given twice"),
        (["--method", "gsr,"], "--method gsr, holds an empty name"),
        (["--method", ""], "holds an empty name"),
        (["--set", "gsr.rho=2"], "--method gsr: rho must be a finite number in [0, 1], got 2.0"),
        (["--set", "gsr.lr=0"], "--method gsr: lr must be positive and finite, got 0.0"),
        (["--set", "gsr.rho=much"], "--set gsr.rho=much: 'much' is not a number"),
        (["--set", "gsr.rho"], "--set gsr.rho: write METHOD.NAME=VALUE"),
        (["--set", "gsr.roh=1"], "--set gsr.roh=1: 'roh' is no setting; there are, of gsr: lr, head_lr, epochs"),
        (["--set", "psp.k=0.3"], "--set psp.k=0.3: psp is no method of this run, which has seqft, gsr"),
        (["--set", "gsr.out_of_span=lose"], "--set gsr.out_of_span=lose: 'lose' is not drop or keep or none"),
        (["--sweep", "gsr.rho=0,1,0.0"], "--sweep gsr.rho=0,1,0.0: a value is given twice"),
        (["--method", "seqft+gsr"], "--method seqft+gsr: SeqFT joins no other method"),
        (
            ["--method", "gsr+o-lora"],
            "--method gsr+o-lora: only methods on weights, or terms of adapters, can be joined",
        ),
        (["--method", "lwf-own+ewc+ewc"], "--method lwf-own+ewc+ewc: EWC is given twice"),
        (["--method", "gsr+gsr"], "--method gsr+gsr: GSR is given twice"),
        (["--method", "replay+ewc+replay"], "--method replay+ewc+replay: Replay is given twice"),
        (["--method", "o-lora+eblora"], "--method o-lora+eblora: EBLoRA is no term of the loss"),
        (["--method", "gsr+data:Own"], "--method data:Own cannot be imported: ModuleNotFoundError"),
        (["--method", "json:JSONDecoder"], "--method json:JSONDecoder: it must be a subclass"),
        (["--seeds", "1,1"], "--seeds must be at least 1, or different numbers"),
        (["--seeds", "3,4", "--first-seed", "1"], "--first-seed is for a number of seeds"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--seeds", "two"], "--seeds: must be at least 1, or different numbers from 0 on with commas"),
        (["--steps", "-1"], "--steps must be at least 1"),
        (["--pretrain-steps", "0"], "--pretrain-steps must be at least 1"),
        (["--lr", "0"], "--lr must be positive and finite"),
        (["--lr", "inf"], "--lr must be positive and finite"),
        (["--width", "12"], "--width 12 must be a multiple"),
        (["--layers", "0"], "--layers must be at least 1"),
        (["--data", "absent"], "--data absent is no folder"),
        (["--data", ""], "argument --data: a path is wanted, got ''"),
        (["--retain", ""], "argument --retain: a path is wanted, got ''"),
        (["--unknown"], "--unknown"),
        (["--known", "quiz.jsonl"], "--known is called --retain now"),
    ],
)
def test_bad_flags_end_in_one_line_and_change_nothing(flags, message, data, tmp_path, capsys):
    # flags given later win
    arguments = ["continual", "--data", data, "--out", str(tmp_path / "out"), *TINY, *flags]
    assert refused(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: " in error and message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["magic"], ["continual"]])
def test_a_command_and_its_folder_are_wanted(arguments, capsys):
    assert refused(arguments) == 2
    assert "error: " in capsys.readouterr().err


def test_a_malformed_row_is_named(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    assert refused(["continual", "--data", str(tmp_path), "--out", str(tmp_path / "out"), *TINY]) == 2
    assert f"{tmp_path / 'a.jsonl'}:2: 'completion' must be a text" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_there_already_is_left_alone(data, tmp_path, capsys):
    (tmp_path / "kept").write_text("mine")
    for out in (tmp_path, tmp_path / "kept"):
        assert refused(["continual", "--data", data, "--out", str(out), *TINY]) == 2
        assert f"--out {out} exists and is no empty folder" in capsys.readouterr().err
    assert refused(["continual", "--data", data, "--out", str(tmp_path / "kept" / "x"), *TINY]) == 2
    assert f"--out {tmp_path / 'kept' / 'x'} cannot be made (Not a directory)" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "mine"


def refused(arguments):
    """The exit code, whether argparse or the command says no."""
    try:
        return main(arguments)
    except SystemExit as error:
        return error.code


def test_a_reader_that_has_seen_enough_is_no_error():
    # as head does
    run = subprocess.Popen(
        [sys.executable, "-m", "gsr_kernels", "continual", "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    run.stdout.close()
    assert (run.stderr.read(), run.wait()) == (b"", 1)
