"""Real architectures, random and tiny, from the flags to the folder; and what a kill leaves."""

import errno
import json
import os
import shutil
import signal
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen2TokenizerFast

from gsr_kernels.__main__ import main
from gsr_kernels.continual.adapter_strategy import PROTECTED
from gsr_kernels.continual.choose import choose
from gsr_kernels.continual.disk import disk_needed
from gsr_kernels.continual.examples import Example
from gsr_kernels.continual.folder import claimed
from gsr_kernels.continual.learn import arguments, learn
from gsr_kernels.continual.metrics import BEFORE
from gsr_kernels.continual.models import load
from gsr_kernels.continual.run_state import RunState
from gsr_kernels.continual.settings import RunSettings
from gsr_kernels.continual.task_sequence import TaskSequence
from gsr_kernels.continual.trainer import TaskTrainer, Watch
from gsr_kernels.methods.base import part
from python_tests.continual.tiny import WORDS, expert_model, save_model, save_tasks, tiny_kind
from python_tests.distributed.ranks import context

QUICK = ["--batch", "8", "--micro-batch", "4", "--steps", "6", "--lr", "1e-3", "--save-every", "2", "--test-rows", "4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return save_tasks(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    kinds = ("causal", "seq2seq", "classifier")
    return {kind: save_model(kind, tmp_path_factory.mktemp(kind), dropout=0.1) for kind in kinds}


def measured(out):
    return {part: json.loads((out / "results.json").read_text())[part] for part in ("matrices", "spectra")}


@pytest.mark.filterwarnings("ignore:gsr_kernels. only")
@pytest.mark.parametrize("kind", ["causal", "seq2seq", "classifier"])
def test_a_kind_of_model_from_the_flags_to_the_folder(kind, models, data, tmp_path, capsys):
    out = tmp_path / "out"
    rows = [{"prompt": f"{word} is", "completion": " good", "options": [" good", " bad"]} for word in WORDS]
    (tmp_path / "quiz.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "text.txt").write_text("the river and the stone " * 100)
    more = {
        "causal": ["--retain", tmp_path / "text.txt", "--retain", tmp_path / "quiz.jsonl", "--metric", "second=exact"],
        "seq2seq": ["--metric", "edit", "--order", "third,first", "--bf16", "--gradient-checkpointing"],
        "classifier": ["--head-lr", "1e-2", "--keep-models", "--bounds"],
    }[kind]
    arguments = ["continual", "--model", models[kind], "--data", data, "--out", str(out), *QUICK, *map(str, more)]
    assert main(arguments) == 0
    assert {file.name for file in out.iterdir()} == {
        ".lock", "config.json", "forgetting.png", "loss.png", "results.json", "spectra.png", "table.txt", "work"
    }  # fmt: skip
    assert (out / "table.txt").read_text() in capsys.readouterr().out

    results = measured(out)
    # what a run has that names no method
    others = {"causal": ["LwF-own"], "seq2seq": [], "classifier": ["PerFT", "MTL"]}[kind]
    assert list(results["matrices"]) == ["SeqFT", "GSR", *others]
    matrices = {title: each[0] for title, each in results["matrices"].items()}
    assert matrices["SeqFT"]["known"] == (["text", "quiz"] if kind == "causal" else [])
    assert matrices["SeqFT"]["tasks"] == (["third", "first"] if kind == "seq2seq" else ["first", "second", "third"])
    cells = [cell for row in matrices["GSR"]["cells"] for cell in row]
    assert all(0 <= cell <= 100 for cell in cells)
    assert matrices["SeqFT"]["cells"][0] == matrices["GSR"]["cells"][0]
    for seen in results["spectra"].values():
        assert list(seen) == [BEFORE, *matrices["GSR"]["tasks"]]
        first, *others = seen.values()
        # every task has moved the weights
        assert all(first != other for other in others) and len(first) >= 4
    kept = sorted(path.name for path in (out / "work" / "seed-0" / "gsr" / "models").iterdir())
    assert kept == (["first", "second", "third"] if kind == "classifier" else [matrices["GSR"]["tasks"][-1]])
    modes = {path.stat().st_mode for path in (out / "work" / "seed-0" / "gsr" / "models").glob("*/*")}
    # whoever may read the table may read the model
    assert modes == {(out / "table.txt").stat().st_mode}
    answers = (out / "work" / "seed-0" / "gsr" / "answers" / "first" / "first.jsonl").read_text().splitlines()
    assert len(answers) == 4 and {"prompt", "completion", "answer"} == json.loads(answers[0]).keys()
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["kind"] == kind and config["tasks"]["first"]["rows"] == {"train": 40, "test": 0}


def kills_itself(method, arguments):
    """Run the arguments, and end in the third task of the method."""

    def on_step_end(self, args, state, control, **kwargs):
        if f"/{method}/" in args.output_dir and args.output_dir.endswith("third") and state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    Watch.on_step_end = on_step_end
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(arguments)


def killed(method, arguments):
    """A run of the arguments, until it kills itself in the third task of the method."""
    process = context.Process(target=kills_itself, args=(method, arguments))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.usefixtures("blank_pictures")
def test_a_run_killed_in_the_third_task_ends_with_the_same_numbers(models, data, tmp_path, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    arguments = ["continual", "--model", models["causal"], "--data", data, *QUICK, "--method", "seqft,gsr"]
    assert main([*arguments, "--out", str(whole)]) == 0
    # a folder that holds what is not of a run is begun in, by the command that goes on too
    cut.mkdir()
    (cut / "notes.txt").write_text("mine")
    killed("gsr", [*arguments, "--out", str(cut), "--resume"])
    assert [path.name for path in (cut / "work/seed-0/gsr/training/third").glob("checkpoint-*")] == ["checkpoint-4"]
    # what was being written when the kill came is no checkpoint
    torn = cut / "work/seed-0/gsr/training/third/checkpoint-5"
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"global_step"')
    assert list(measured(cut)["matrices"]) == ["SeqFT"]

    assert main([*arguments, "--out", str(cut), "--lr", "2e-3", "--resume"]) == 2
    assert "--resume: settings lr was 0.001 in" in capsys.readouterr().err
    model = shutil.copytree(models["causal"], tmp_path / "model")
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    assert main(["continual", str(cut), "--resume", "--model", str(model)]) == 2
    assert "--resume: model model.safetensors was " in capsys.readouterr().err
    # what decides no numbers may change; the same rows and weights elsewhere are the same; all else is as it was
    data, model = shutil.copytree(data, tmp_path / "copy"), shutil.copytree(models["causal"], tmp_path / "moved")
    free = ["--eval-batch", "3", "--save-every", "1", "--gradient-checkpointing", "--keep-models"]
    free += ["--model", str(model), "--data", str(data)]
    assert main(["continual", str(cut), "--resume", *free]) == 0
    assert "settings eval_batch was 32 in" in capsys.readouterr().err
    assert measured(cut) == measured(whole)
    config = json.loads((cut / "config.json").read_text())
    assert (
        config["settings"]["max_grad_norm"] == 1.0 and "gradients clipped to norm 1;" in (cut / "table.txt").read_text()
    )
    assert all(config["versions"][package] for package in ("transformers", "accelerate", "peft", "tokenizers"))
    assert config["arguments"][-2] == str(cut) and [run["arguments"][-1] for run in config["resumed"]] == [str(data)]
    with claimed(cut):
        assert main(["continual", str(cut), "--resume"]) == 2
    assert f"another run writes into it (process {os.getpid()} on" in capsys.readouterr().err
    # a folder of before these were settings
    for name in ("max_grad_norm", "fsdp", "processes"):
        del config["settings"][name]
    (cut / "config.json").write_text(json.dumps(config))
    assert main(["continual", str(tmp_path / "other"), "--resume"]) == 2
    assert "other holds no run to go on with" in capsys.readouterr().err
    # nothing is left to do, and nothing is done
    assert main(["continual", str(cut), "--resume"]) == 0
    assert measured(cut) == measured(whole)


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize(
    ("kind", "methods", "others"),
    [("causal", "gsr,ps-lora", "mtl"), ("classifier", "gsr,ewc", "perft")],
)
def test_a_task_a_seed_and_a_method_are_added_to_a_finished_run(kind, methods, others, models, data, tmp_path, capsys):
    whole, grown = tmp_path / "whole", tmp_path / "grown"
    arguments = ["continual", "--model", models[kind], "--data", data, *QUICK, "--weight-decay", "0.1"]
    arguments += ["--steps", "2", "--keep-models", "--out"]
    assert main([*arguments, str(whole), "--method", f"{methods},seqft,{others}", "--seeds", "2"]) == 0
    assert main([*arguments, str(grown), "--method", f"{methods},{others}", "--order", "first,second"]) == 0
    # as it is without --keep-models
    shutil.rmtree(grown / "work/seed-0/gsr/models/first")
    more = ["--order", "first,second,third", "--method", "seqft", "--seeds", "2"]
    assert main(["continual", str(grown), "--resume", *more]) == 0
    told = capsys.readouterr().out
    assert "GSR has no score on third after first: the models were not kept" in told
    assert f"{grown}/work/seed-0/before.json lacks third: scored now" in told
    expected = measured(whole)
    row = expected["matrices"]["GSR"][0]["cells"][1]
    row[-1] = None
    assert measured(grown) == expected
    # a classifier's head too, which has the labels of the tasks so far
    files = [path.relative_to(whole) for path in whole.glob("work/*/*/models/*/*.safetensors")]
    assert len(files) >= 10
    for file in files:
        if "seed-0/gsr/models/first" not in str(file):
            assert (whole / file).read_bytes() == (grown / file).read_bytes()
    assert main(["continual", str(grown), "--resume", "--order", "second,first,third"]) == 2
    assert "--resume: the order of tasks was first, second, third in" in capsys.readouterr().err


@pytest.mark.usefixtures("blank_pictures")
def test_a_signal_ends_a_run_with_a_checkpoint_and_how_to_go_on(models, data, tmp_path, monkeypatch, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    arguments = ["continual", "--model", models["causal"], "--data", data, *QUICK, "--order", "first"]
    arguments += ["--method", "gsr", "--out"]
    assert main([*arguments, str(whole)]) == 0
    on_step_end, scores, keeps = Watch.on_step_end, TaskSequence.scores, signal.getsignal(signal.SIGINT)

    def ends(self, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        on_step_end(self, args, state, control, **kwargs)

    def stops(self, model, folder, only=None):
        os.kill(os.getpid(), signal.SIGTERM)
        return scores(self, model, folder, only)

    monkeypatch.setattr(Watch, "on_step_end", ends)
    for name, code in (("SIGINT", 130), ("SIGTERM", 143)):
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, str(cut), "--resume"])
        assert stopped.value.code == code and signal.getsignal(signal.SIGINT) is keeps
        told = f"stopped by {name}: go on with python -m gsr_kernels continual {cut} --resume"
        assert capsys.readouterr().err.rstrip().endswith(told)
        # the step was ended, and a task that is learned is kept while it is scored
        left = [path.name for path in (cut / "work/seed-0/gsr/training/first").glob("checkpoint-*")]
        assert left == (["checkpoint-3"] if name == "SIGINT" else ["checkpoint-6"])
        monkeypatch.setattr(Watch, "on_step_end", on_step_end)
        monkeypatch.setattr(TaskSequence, "scores", stops)
    monkeypatch.setattr(TaskSequence, "scores", scores)
    assert main(["continual", str(cut), "--resume"]) == 0
    assert measured(cut) == measured(whole)


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize("method", ["gsr", "ewc", "ps-lora"])
def test_the_disk_that_is_told_is_taken(method, models, data, tmp_path, monkeypatch):
    out, taken = tmp_path / "out", []
    arguments = ["continual", "--model", models["causal"], "--data", data, "--steps", "2", "--test-rows", "2"]
    finish = RunState.finish

    def measures(self, *given):
        sizes = Counter()
        for file in out.rglob("*"):
            if file.suffix == ".safetensors" or file.name == "optimizer.pt":
                sizes[file.name] += file.stat().st_size
        taken.append(sizes)
        finish(self, *given)

    monkeypatch.setattr(RunState, "finish", measures)
    assert main([*arguments, "--order", "first,second", "--method", method, "--out", str(out)]) == 0
    weights = Path(models["causal"], "model.safetensors").stat().st_size
    trained = taken[0]["adapter_model.safetensors"] or weights
    moments, bases = taken[-1]["optimizer.pt"], taken[-1]["bases.safetensors"]
    [chosen] = choose([method], [], [], RunSettings(methods=(method,))).values()
    beside = taken[0]["ewc.safetensors"]
    kept, more = disk_needed(chosen, weights, trained, moments, bases, beside, 2, 2)
    assert kept + more == pytest.approx(taken[-1].total(), rel=0.02)
    left = sum(file.stat().st_size for file in out.rglob("*.safetensors"))
    assert kept == pytest.approx(left, rel=0.02)


def _too_large(*given):
    raise OSError(errno.EFBIG, "File too large")


def test_a_full_disk_is_told_in_one_sentence(models, data, tmp_path, monkeypatch, capsys):
    arguments = ["continual", "--model", models["causal"], "--data", data, "--out", str(tmp_path / "out"), *QUICK]
    full = lambda self, folder: torch.save(torch.zeros(9), "/dev/full")  # noqa: E731
    monkeypatch.setattr(TaskTrainer, "_save_optimizer_and_scheduler", full)
    assert main([*arguments, "--method", "seqft"]) == 2
    assert "out: the disk is full (" in capsys.readouterr().err.splitlines()[-1]
    # a limit on the size of a file, too
    monkeypatch.setattr(TaskTrainer, "_save_optimizer_and_scheduler", _too_large)
    assert main([*arguments, "--method", "seqft", "--out", str(tmp_path / "limit")]) == 2
    assert "or a quota or ulimit -f is reached: free" in capsys.readouterr().err.splitlines()[-1]
    # before anything is written, as well
    monkeypatch.setattr(Path, "mkdir", lambda *given, **more: Path("/dev/full").write_text("x"))
    assert main([*arguments, "--method", "seqft", "--out", str(tmp_path / "new")]) == 2
    assert "new: the disk is full (" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.usefixtures("blank_pictures")
def test_a_run_stopped_while_it_scores_ends_with_the_same_numbers(models, data, tmp_path, monkeypatch, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    arguments = ["continual", "--model", models["causal"], "--data", data, *QUICK, "--schedule", "constant_with_warmup"]
    arguments += ["--method", "gsr,ps-lora,eblora,ewc", "--adapter-lr", "3e-3", "--order", "first,second"]
    assert main([*arguments, "--out", str(whole)]) == 0
    scores = TaskSequence.scores
    stopped = []

    def stops(self, model, folder, only=None):
        method = folder.parts[-3]
        # what EBLoRA protects after a task, and what EWC holds, counts in the next one
        if folder.name == {"eblora": "first", "ewc": "first"}.get(method, "second") and method not in stopped:
            stopped.append(method)
            raise KeyboardInterrupt
        return scores(self, model, folder, only)

    monkeypatch.setattr(TaskSequence, "scores", stops)
    for more in ([], ["--resume"], ["--resume"], ["--resume"]):
        with pytest.raises(KeyboardInterrupt):
            main([*arguments, "--out", str(cut), *more])
    assert stopped == ["gsr", "ps-lora", "eblora", "ewc"]
    assert main([*arguments, "--order", "second,first", "--out", str(cut), "--resume"]) == 2
    assert "--resume: the order of tasks was first, second in" in capsys.readouterr().err
    assert main([*arguments, "--out", str(cut), "--resume"]) == 0
    assert measured(cut) == measured(whole)


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_eblora_and_gsr_on_adapters_killed_in_the_third_task_end_with_the_same_numbers(kind, models, data, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = ["--adapter-lr", "3e-3", "--adapter-dropout", "0.1", "--gradient-checkpointing", "--weight-decay", "0.1"]
    methods = ["gsr-lora", "eblora"] if kind == "causal" else ["eblora"]
    arguments = ["continual", "--model", models[kind], "--data", data, *QUICK, "--method", ",".join(methods), *more]
    assert main([*arguments, "--out", str(whole)]) == 0
    for method, resume in zip(methods, ([], ["--resume"])):
        killed(method, [*arguments, "--out", str(cut), *resume])
        checkpoints = (cut / f"work/seed-0/{method}/training/third").glob("checkpoint-*")
        assert [path.name for path in checkpoints] == ["checkpoint-4"]
    assert main([*arguments, "--out", str(cut), "--resume"]) == 0
    assert measured(cut) == measured(whole)

    described = list(json.loads((whole / "config.json").read_text())["methods"].values())
    assert described[-1].items() >= {"energy": 0.99, "lr": 3e-3, "rank": 8, "dropout": 0.1}.items()
    if kind == "causal":
        assert described[0].items() >= {"rho": 0.5, "spectrum": "adapter"}.items()
        logs = json.loads((cut / "work/seed-0/gsr-lora/state.json").read_text())["logs"]
        # from the second task on the adapter has directions, and they are rescaled
        assert all(each["gsr/inactive_directions"] == 0 for each in logs["third"] if "loss" in each)
    for title, seen in measured(whole)["spectra"].items():
        moved = {name for name, sigma in seen["third"].items() if sigma != seen[BEFORE][name]}
        assert moved and all(any(part in name for part in (".q", ".v")) for name in moved), title


@pytest.mark.usefixtures("blank_pictures")
def test_eblora_leaves_a_whole_model_and_the_inputs_that_it_protects(models, data, tmp_path):
    out = tmp_path / "out"
    arguments = ["continual", "--model", models["causal"], "--data", data, *QUICK, "--method", "eblora"]
    assert main([*arguments, "--keep-models", "--adapter-lr", "3e-3", "--out", str(out)]) == 0
    folders = [out / "work/seed-0/eblora/models" / name for name in ("first", "second", "third")]
    protected = [part(load_file(folder / PROTECTED), "protected") for folder in folders]
    for before, after in pairwise(protected):
        for name, F in before.items():
            assert after[name].shape[1] > F.shape[1] and torch.equal(after[name][:, : F.shape[1]], F)
            assert torch.dist(after[name].mT @ after[name], torch.eye(after[name].shape[1])) < 1e-5
    weights = [load_file(folder / "model.safetensors") for folder in folders]
    for name, F in protected[0].items():
        # what the second task has added maps the inputs of the first as before
        moved = weights[1][f"{name}.weight"] - weights[0][f"{name}.weight"]
        assert torch.linalg.matrix_norm(moved) > 1e-3
        assert torch.linalg.matrix_norm(moved @ F) < 1e-5 * torch.linalg.matrix_norm(moved)


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_adapters_learn_in_turn_and_resume(kind, models, data, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    methods = "inclora,o-lora,seqlora,ps-lora" if kind == "causal" else "ps-lora"
    more = ["--adapter-lr", "3e-3", "--adapter-dropout", "0.1", "--set", "lam=0.5", "--gradient-checkpointing"]
    arguments = ["continual", "--model", models[kind], "--data", data, *QUICK, *more]
    assert main([*arguments, "--method", methods, "--out", str(whole)]) == 0
    described = json.loads((whole / "config.json").read_text())["methods"]["PS-LoRA"]
    assert described.items() >= {"lam": 0.5, "alpha": "auto", "rank": 8, "lr": 3e-3, "dropout": 0.1}.items()
    cells = {title: each[0]["cells"] for title, each in measured(whole)["matrices"].items()}
    assert all(rows[0] == cells["PS-LoRA"][0] for rows in cells.values())
    adapters = whole / "work/seed-0/ps-lora/models/third"
    assert sorted(path.name for path in adapters.iterdir() if path.is_dir()) == ["task-001", "task-002", "task-003"]
    spectra = measured(whole)["spectra"]["PS-LoRA"]
    moved = [name for name, sigma in spectra["third"].items() if sigma != spectra[BEFORE][name]]
    assert moved and all(any(part in name for part in (".q", ".v")) for name in moved)

    on_step_end = Watch.on_step_end

    def ends(self, args, state, control, **kwargs):
        if "ps-lora" in args.output_dir and args.output_dir.endswith("third") and state.global_step == 5:
            raise KeyboardInterrupt
        on_step_end(self, args, state, control, **kwargs)

    monkeypatch.setattr(Watch, "on_step_end", ends)
    with pytest.raises(KeyboardInterrupt):
        main([*arguments, "--method", "ps-lora", "--out", str(cut)])
    monkeypatch.setattr(Watch, "on_step_end", on_step_end)
    assert main([*arguments, "--method", "ps-lora", "--out", str(cut), "--resume"]) == 0
    alone = {name: {"PS-LoRA": found["PS-LoRA"]} for name, found in measured(whole).items()}
    assert measured(cut) == alone


def test_experts_saved_after_the_last_step_are_as_they_were(models, tmp_path):
    settings = RunSettings(model=models["causal"], lr=1e-2, batch=4, steps=2)
    kind = tiny_kind(settings)
    rows = [Example(word, " red") for word in WORDS[:8]]
    learned, again = expert_model("qwen3"), expert_model("qwen3")
    ticks = []
    for model in (learned, again):
        log = learn(kind, model, rows, settings, lambda *_: None, tmp_path, 0, lambda *tick: ticks.append(tick))
    # the second time all of it comes from the checkpoint
    assert ticks == [(0, True), (1, False), (1, False), (2, True)] and log
    after = again.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in learned.state_dict().items())


def test_a_new_head_learns_at_its_own_rate_decayed_or_not(models, tmp_path):
    settings = RunSettings(model=models["classifier"], lr=1e-5, weight_decay=0.1, head_lr=1e-2)
    kind = tiny_kind(settings)
    kind.choose_among([("task", ("a", "b"))])
    model = load(kind, settings.model, "float32", 0)
    rows = [kind.features(Example("x", "a", ("a", "b")))]
    trainer = TaskTrainer(model=model, args=arguments(settings, 1, tmp_path, 0), train_dataset=rows)
    trainer.head_lr = settings.head_lr
    optimizer = trainer.create_optimizer()
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    decays = {parameter: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    head, below = model.classifier, model.bert.embeddings.word_embeddings
    assert rates[head.weight] == rates[head.bias] == 1e-2 and rates[below.weight] == 1e-5
    assert (decays[head.weight], decays[head.bias]) == (0.1, 0.0) and len(rates) == len(list(model.parameters()))
    # the one step of a short task has a rate
    assert trainer.create_scheduler(1, optimizer).get_last_lr()[0] == 1e-5


def test_a_rate_that_diverges_ends_the_run(models, data, tmp_path, capsys):
    arguments = ["continual", "--model", models["causal"], "--data", data, "--out", str(tmp_path / "out"), *QUICK]
    assert main([*arguments, "--lr", "1e30", "--method", "seqft"]) == 2
    assert "lr 1e+30 is too high" in capsys.readouterr().err


@pytest.mark.usefixtures("blank_pictures")
def test_a_method_whose_last_step_diverges_ends_alone(models, data, tmp_path, capsys, monkeypatch):
    on_step_end = Watch.on_step_end

    def breaks(self, args, state, control, **kwargs):
        on_step_end(self, args, state, control, **kwargs)
        if state.global_step == state.max_steps and "/gsr/" in args.output_dir:
            next(kwargs["model"].parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(Watch, "on_step_end", breaks)
    arguments = ["continual", "--model", models["causal"], "--data", data, "--out", str(tmp_path / "out"), *QUICK]
    assert main([*arguments, "--method", "gsr,seqft", "--seeds", "2", "--steps", "2"]) == 2
    told = "seed 0, weights are not finite at the end of a task: lr 0.001 is too high"
    printed = capsys.readouterr()
    assert f"error: GSR diverged: {told}" in printed.err and f"GSR diverged, and ends there: {told}" in printed.out
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["diverged"] == {"GSR": told}
    assert {title: len(each) for title, each in results["matrices"].items()} == {"SeqFT": 2}
    assert not (tmp_path / "out/work/seed-0/gsr/models").exists()


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def flock(handle, how):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    # what network file systems ask of a lock
    with claimed(tmp_path):
        [handle] = [each for each in Path("/proc/self/fd").iterdir() if each.resolve() == tmp_path / ".lock"]
        flags = Path("/proc/self/fdinfo", handle.name).read_text().split("flags:")[1].split()[0]
        assert int(flags, 8) & os.O_RDWR
    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match=r"takes no locks \(not supported\): give a folder on another"), claimed(tmp_path):
        pass


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        ("causal", ["--kind", "seq2seq"], "--kind seq2seq: llama has no such head, but causal, classifier"),
        ("causal", ["--method", "eblora", "--adapter-rank", "17"], "--adapter-rank must be at most 16 for eblora"),
        ("causal", ["--method", "ps-lora", "--set", "ps-lora.lam=0"], "--method ps-lora: lam must be a finite number"),
        ("causal", ["--adapter-dropout", "1"], "--adapter-dropout must be a share in [0, 1), got 1"),
        ("classifier", ["--method", "ps-lora"], "--method ps-lora is for models that write, not for a classifier"),
        ("causal", ["--method", "magic"], "--method 'magic' is unknown"),
        ("causal", ["--metric", "magic"], "--metric 'magic' is unknown; there are accuracy, exact"),
        ("causal", ["--metric", "fourth=exact"], "'fourth' is no task; there are first, second, third"),
        ("causal", ["--metric", "pass@1"], "first: --metric pass@1 is for rows with a 'test'"),
        ("causal", ["--order", "first,fourth"], "--order first,fourth: unknown 'fourth'. The data has first, second"),
        ("causal", ["--order", "order1"], "this copy of the data lacks dbpedia, amazon, yahoo, agnews"),
        ("causal", ["--order", "order1", "--partial"], "has none of its tasks"),
        ("causal", ["--order", "first,first"], "names a task twice"),
        ("causal", ["--retain", "absent.jsonl"], "--retain absent.jsonl is no file"),
        ("causal", ["--batch", "8", "--micro-batch", "3"], "--micro-batch 3 must divide batch 8"),
        ("causal", ["--max-grad-norm", "-1"], "--max-grad-norm must be finite and at least 0, got -1"),
        ("causal", ["--epochs", "nan"], "--epochs must be positive and finite"),
        ("causal", ["--warmup", "1"], "--warmup must be a share"),
        ("causal", ["--max-tokens", "0"], "--max-tokens must be at least 1"),
        ("causal", ["--max-tokens", "4096"], "--max-tokens must be at most 2048, the positions that the model has"),
        ("causal", ["--rank", "100"], "--rank must lie in [1, 32]"),
        ("causal", ["--rank", "2", "--method", "psp"], "--rank must be None for PSP"),
        ("causal", ["--rank", "2", "--method", "gsr,sr"], "--rank is not a setting of SR"),
        ("classifier", ["--retain", "absent.jsonl"], "--retain is for models that write"),
        ("causal", ["--chat"], "has no chat template"),
        ("causal", ["--fsdp"], "--fsdp shards a model over several processes: start them by torchrun"),
        ("causal", ["--width", "8"], "--width: only without --model"),
        ("causal", ["--model", "absent/model"], "--model absent/model is no folder with a model, and no hub gave one"),
        ("causal", ["--rho", "2"], "--rho must be a finite number in [0, 1]"),
        ("classifier", ["--metric", "exact"], "first: a classifier cannot be scored by exact"),
        ("causal", ["--method", "osf,sr", "--precision", "fp16"], "--precision is read by gsr, gsr-full, psp, none of"),
        ("causal", ["--head-lr", "1e-2"], "--head-lr is for a classifier's new head"),
        ("causal", ["--metric", "exact", "--new-tokens", "2048"], "the model has 2048: lower --new-tokens"),
        ("classifier", ["--chat"], "--chat is for models that write"),
    ],
)  # fmt: skip
def test_bad_input_ends_before_any_training(kind, flags, message, models, data, tmp_path, capsys):
    arguments = ["continual", "--model", models[kind], "--data", data, "--out", str(tmp_path / "out"), *QUICK, *flags]
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: " in error and message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "what"), [("causal", "completions"), ("seq2seq", "completions"), ("classifier", "prompts")]
)
def test_a_model_without_its_tokenizers_files_is_refused(kind, what, models, data, tmp_path, capsys):
    folder = shutil.copytree(models[kind], tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    # a Llama's configuration asks for files, those of many others make an empty tokenizer
    if kind == "causal":
        Qwen2TokenizerFast(bos_token="<s>").save_pretrained(folder)
    arguments = ["continual", "--model", str(folder), "--data", data, "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "first: of " in error and f"{what} the tokenizer makes no token that it knows" in error
    assert "holds the tokenizer of its weights (tokenizer.json)" in error and not (tmp_path / "out").exists()


def test_a_token_beyond_the_models_vocabulary_is_refused(models, data, tmp_path, capsys):
    folder = shutil.copytree(models["causal"], tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([*(f"<{number}>" for number in range(len(tokenizer), 300)), "apple:"])
    tokenizer.save_pretrained(folder)
    arguments = ["continual", "--model", str(folder), "--data", data, "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "apple:' has the token 300 ('apple:'), and the model knows 300, from 0 on" in capsys.readouterr().err
    tokenizer.add_special_tokens({"pad_token": "<more>"})
    tokenizer.save_pretrained(folder)
    assert main(arguments) == 2
    assert "the tokenizer's pad_token is 301, and the model knows 300 tokens" in capsys.readouterr().err


def test_what_is_cut_is_told_by_task(models, data, tmp_path, capsys):
    arguments = ["continual", "--model", models["causal"], "--data", data, "--out", str(tmp_path / "out"), *QUICK]
    assert main([*arguments, "--max-tokens", "4", "--steps", "1", "--method", "seqft"]) == 0
    said = "What does not fit into 4 tokens: first: 36 prompts of 36 rows are cut; second: "
    assert said in capsys.readouterr().out


def test_what_is_no_text_model_is_refused(data, tmp_path, capsys):
    folder = tmp_path / "vision"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    arguments = ["continual", "--model", str(folder), "--data", data, "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "error: --model" in capsys.readouterr().err


def test_adapters_of_an_unknown_architecture_are_refused(models, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("peft.tuners.lora.LoraModel.target_module_mapping", {})
    arguments = ["continual", "--model", models["causal"], "--data", data, "--out", str(tmp_path / "out")]
    assert main([*arguments, "--method", "seqft,o-lora"]) == 2
    assert "method o-lora: PEFT knows no query and value of llama" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_not_installed_is_named(models, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gsr_kernels.messages.find_spec", lambda name: None if name == "rouge_score" else name)
    arguments = ["continual", "--model", models["causal"], "--data", data, "--out", str(tmp_path / "out")]
    assert main([*arguments, "--metric", "rouge-l"]) == 2
    message = "--metric rouge-l needs the package rouge-score: pip install '.[runner]' in a checkout"
    assert message in capsys.readouterr().err
