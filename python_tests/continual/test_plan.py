"""The plan of a run: printed alone it writes nothing, and its memory is what training holds."""

import json
import os
import sys

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from gsr_kernels import GSR, attach
from gsr_kernels.__main__ import main
from gsr_kernels.cli.memory import LAPACK
from gsr_kernels.continual.choose import choose
from gsr_kernels.continual.kinds import Causal
from gsr_kernels.continual.memory import FEWEST, HOLES, LIBRARIES, _activations, needed
from gsr_kernels.continual.models import load
from gsr_kernels.continual.settings import RunSettings
from python_tests.continual.tiny import save_model, save_tasks, tiny_kind


@pytest.mark.parametrize("kind", ["causal", "seq2seq", "classifier"])
def test_a_dry_run_prints_the_plan_and_writes_nothing(kind, tmp_path, capsys, monkeypatch):
    model, data, out = save_model(kind, tmp_path / "model"), save_tasks(tmp_path / "data"), tmp_path / "out"
    methods = "seqft,gsr" if kind == "classifier" else "seqft,gsr,ewc,ps-lora"
    arguments = ["continual", "--model", model, "--data", data, "--out", str(out), "--batch", "8", "--dry-run"]
    assert (
        main(
            [
                *arguments,
                "--steps",
                "6",
                "--test-rows",
                "4",
                "--seeds",
                "2",
                "--method",
                methods,
                "--validation",
                "0.25",
            ]
        )
        == 0
    )
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    # of 40 rows a fifth is drawn for the score, and of the others a quarter for validation: 4 of each at most
    assert rows["first"] == ["24", "4", "4", "0", "0"] and not out.exists()
    assert all(rows[title][0] == "36" and rows[title][-1] == "MB" for title in ("SeqFT", "GSR"))
    assert "unknown" not in " ".join(map(" ".join, rows.values()))
    monkeypatch.setattr("gsr_kernels.continual.plan.room", lambda: 1000)
    assert main(arguments) == 0
    methods = "SeqFT, GSR, LwF-own" if kind == "causal" else "SeqFT, GSR"
    assert f"NOT ENOUGH MEMORY for {methods}: lower --micro-batch or --rank" in capsys.readouterr().out


def test_a_model_that_looks_for_padding_has_activations_too():
    config = GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, pad_token_id=0)
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    # the logits and their softmax, at least
    assert sum(_activations(model, Causal(None, 8), 2, 8, 8)) > 2 * 2 * 8 * 300 * 4 and config.pad_token_id == 0


def test_a_decoder_that_answers_in_few_labels_saves_little_of_them(tmp_path):
    kind = tiny_kind(RunSettings(model=save_model("seq2seq", tmp_path), batch=8))
    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config.from_pretrained(tmp_path))
    short, long = (sum(_activations(model, kind, 2, 64, labels)) for labels in (2, 64))
    assert short < long / 2


def test_what_is_unknown_is_no_upper_bound(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gsr_kernels.continual.memory._activations", lambda *given: None)
    model, data = save_model("causal", tmp_path / "model"), save_tasks(tmp_path / "data")
    arguments = ["--model", model, "--data", data, "--out", str(tmp_path / "out"), "--method", "seqft"]
    assert main(["continual", *arguments, "--dry-run"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("SeqFT")]
    assert "unknown" in line and line.split()[-3] == "over"


def test_losses_are_shown_drawn_and_logged(tmp_path, capsys, monkeypatch):
    model, data, out = save_model("causal", tmp_path / "model"), save_tasks(tmp_path / "data"), tmp_path / "out"
    arguments = ["continual", "--model", model, "--data", data, "--out", str(out), "--batch", "8", "--steps", "2"]
    arguments += ["--method", "seqft", "--test-rows", "2", "--log", "tensorboard"]
    shown = []
    monkeypatch.setattr("tqdm.tqdm.set_postfix_str", lambda bar, text, refresh: shown.append(text))
    assert main(arguments) == 0
    assert sum(text.startswith("loss ") for text in shown) == 6 and (out / "loss.png").stat().st_size > 1000
    assert len([*out.glob("work/seed-0/seqft/log/*/events*")]) == 3
    monkeypatch.setattr("gsr_kernels.continual.checks.find_spec", lambda name: None)
    assert main([*arguments, "--resume"]) == 2
    assert "--log tensorboard needs the package tensorboard: pip install tensorboard" in capsys.readouterr().err


# what the callbacks of transformers call, of both
STAND_IN = """
import json, types
class Config(dict):
    def update(self, values, **kwargs): pass
def record(*what):
    with open(FILE, "a") as file: file.write(json.dumps(what) + chr(10))
class Run:
    summary = {}
    def _label(self, **kwargs): pass
config, run, __version__ = Config(), None, "1.0.0"
context_vars = types.SimpleNamespace(current_space_id=types.SimpleNamespace(get=lambda: None))
def init(project, name=None, **kwargs):
    global run
    assert run is None
    run = Run()
    record(project, name)
def log(values): record("loss" in values or "train/loss" in values)
def finish():
    global run
    if run is not None: record("finish")
    run = None
"""


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_task_is_a_run_of_its_own_for_a_logger(name, tmp_path, monkeypatch):
    told = tmp_path / "told.jsonl"
    package = tmp_path / "packages" / name
    (package / "sdk" / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text(f"FILE = {str(told)!r}\n{STAND_IN}")
    (package / "sdk" / "lib" / "config_util.py").write_text("class ConfigError(Exception): pass")
    monkeypatch.syspath_prepend(package.parent)
    for variable in ("MODE", "DIR", "PROJECT"):
        # taken away again at the end, what the run sets too
        monkeypatch.setenv(f"WANDB_{variable}", "")
        monkeypatch.delenv(f"WANDB_{variable}")
    model, data = save_model("causal", tmp_path / "model"), save_tasks(tmp_path / "data", ("first", "second"))
    arguments = ["--model", model, "--data", data, "--out", str(tmp_path / "it"), "--batch", "8", "--steps", "1"]
    assert main(["continual", *arguments, "--method", "seqft", "--test-rows", "1", "--log", name]) == 0
    lines = [json.loads(line) for line in told.read_text().splitlines()]
    runs = [line for line in lines if len(line) == 2]
    # W&B's callback gives a name where transformers has one
    assert runs == [["it", "seed-0/seqft/first"], ["it", "seed-0/seqft/second"]]
    assert lines.count(["finish"]) == 2 and lines.count([True]) == 2
    assert (os.environ.get("WANDB_MODE") == "offline") == (name == "wandb")
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)


def test_the_plans_memory_is_what_training_holds(tmp_path):
    settings = RunSettings(model=save_model("causal", tmp_path), batch=8, micro_batch=4, adapter_rank=2)
    kind = tiny_kind(settings)
    model = load(kind, settings.model, "float32", 0)
    with torch.device("meta"):
        bare = type(model)(model.config)
    methods = choose(("seqft", "gsr", "ewc", "osf", "ps-lora", "eblora", "lwf-own"), [], [], settings)
    found = {name: needed(bare, kind, one, (20, 20)) for name, one in methods.items()}
    weights = sum(parameter.nbytes for parameter in model.parameters())
    handle = attach(model, torch.optim.AdamW(model.parameters()), GSR(0.5))
    bases = sum(basis.U.nbytes + basis.S.nbytes + basis.Vh.nbytes for basis in handle.bases.values())
    seqft, gsr = found["seqft"], found["gsr"]
    assert (seqft.weights, seqft.gradients, seqft.moments, seqft.bases) == (weights, weights, 2 * weights, 0)
    assert gsr.bases == bases and gsr.activations == seqft.activations > 4 * 20 * 300 * 4
    # beside the gradients one parameter's more, of the largest
    beside = max(parameter.nbytes for parameter in model.parameters())
    assert gsr.peak == 3 * weights + bases + gsr.decomposition + weights + gsr.activations + beside
    own = sum(_activations(bare, kind, 4, 64, 64))
    assert found["lwf-own"].activations == seqft.activations + own and found["lwf-own"].kept == weights
    # the holes of the heap lie in what the decomposition left
    holes = int(HOLES * seqft.activations) - 3 * weights
    holes = max(holes, int(FEWEST * seqft.activations))
    # without bases spectra load LAPACK, whose share a decomposition holds already
    libraries = LIBRARIES + LAPACK
    assert seqft.peak == 4 * weights + seqft.activations + beside + holes + libraries
    assert gsr.decomposition > libraries and seqft.decomposition == libraries
    matrices = sum(weight.parameter.nbytes for weight in handle.weights)
    # no more than all directions are protected
    assert (found["osf"].bases, found["osf"].kept) == (bases, matrices)
    assert found["ewc"].kept == 2 * weights and found["ps-lora"].copied == weights == found["ps-lora"].weights
    # query and value of two layers
    assert found["eblora"].gradients == 4 * 2 * 2 * (2 * 32 + 32 + 16) and found["eblora"].copied == 0
    # a mean gradient, a batch's, and inputs to protect, which are decomposed
    assert found["eblora"].kept == 4 * 2 * (2 * (32 * 32 + 16 * 32) + 2 * 32 * 32)
    assert 0 < found["eblora"].decomposition < gsr.decomposition
