"""Bounds of methods on adapters, and the baselines that keep something of earlier tasks."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from gsr_kernels.__main__ import main
from gsr_kernels.continual.baselines import LwF, Replay
from gsr_kernels.continual.choose import choose
from gsr_kernels.continual.examples import Example
from gsr_kernels.continual.kinds import IGNORED
from gsr_kernels.continual.learn import learn
from gsr_kernels.continual.settings import RunSettings
from gsr_kernels.continual.strategy import Rehearsed
from gsr_kernels.continual.task_sequence import TaskSequence
from gsr_kernels.methods.lwf_own import OWN_STEPS, own_text
from python_tests.continual.tiny import WORDS, save_model, save_tasks, tiny_kind

QUICK = ["--batch", "8", "--steps", "2", "--lr", "1e-2", "--test-rows", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("baselines")
    save_tasks(folder / "data", ("first", "second"))
    for kind in ("causal", "seq2seq", "classifier"):
        save_model(kind, folder / kind)
    return folder


def test_replayed_rows_are_a_share_in_turn_from_every_earlier_task():
    tasks = [[f"{task}{number}" for number in range(30)] for task in "abc"]
    replay = Replay(share=0.25, buffer=8)
    assert replay.rows(tasks[0], [], 0) == tasks[0]
    rows = replay.rows(tasks[2], tasks[:2], 0)
    assert rows[:30] == tasks[2] and len(rows) == 40
    again = rows[30:]
    # eight are kept, and two of them come twice
    assert len(set(again)) == 8 and sum(row[0] == "a" for row in set(again)) == 4
    assert replay.rows(tasks[2], tasks[:2], 0) == rows != replay.rows(tasks[2], tasks[:2], 1)
    for settings, message in (({"share": 1}, "share must be below 1"), ({"buffer": 0}, "buffer must be")):
        with pytest.raises(ValueError, match=message):
            Replay(**settings)


@pytest.mark.parametrize("name", ["causal", "seq2seq"])
def test_distillation_is_the_divergence_at_every_token_that_is_learned(name, folder):
    kind = tiny_kind(RunSettings(model=str(folder / name)))
    ours, theirs = torch.randn(2, 2, 3, 5, dtype=torch.float64)
    labels = torch.tensor([[IGNORED, 3, 4], [IGNORED, 1, IGNORED]])
    at = [(0, 1), (0, 2), (1, 1)]
    shift = int(name == "causal")
    pairs = [[(one[row, place - shift] / 3).softmax(-1) for one in (ours, theirs)] for row, place in at]
    expected = 0.5 * 9 * sum((q * (q / p).log()).sum() for p, q in pairs)
    term = LwF(0.5, 3.0).term(kind, ours, theirs, labels, 6.0)
    assert term.item() == pytest.approx(expected.item() / 6, rel=1e-5)
    assert LwF(0.5, 3.0).term(kind, ours, theirs, labels, None).item() == pytest.approx(expected.item() / 3, rel=1e-5)


def test_a_classifier_distils_the_options_of_earlier_tasks():
    class Labels:
        name, owner = "classifier", torch.tensor([0, 0, 1, 1, 1, 2])

    ours, theirs = torch.randn(2, 3, 6)
    # of the tasks 0 and 1, and filling
    labels = torch.tensor([1, 3, IGNORED])
    p, q = ((one[1, :2] / 2).log_softmax(-1) for one in (ours, theirs))
    expected = 4 * F.kl_div(p, q, reduction="sum", log_target=True) / 2
    assert LwF().term(Labels, ours, theirs, labels, None).item() == pytest.approx(expected.item(), rel=1e-5)
    assert LwF().term(Labels, ours, theirs, torch.tensor([0, 1, 0]), None) == 0


def test_the_models_own_text_is_held_where_it_was(folder):
    settings = RunSettings(model=str(folder / "causal"))
    [chosen] = choose(["lwf-own"], ["own_rows=2", "own_tokens=5", "temperature=3"], [], settings).values()
    strategy = Rehearsed(tiny_kind(settings), chosen, folder / "causal", 0)
    strategy.open(None)
    state = torch.get_rng_state()
    trainer = SimpleNamespace(
        args=SimpleNamespace(seed=7), state=SimpleNamespace(global_step=3), compute_loss_func=lambda *given: 10.0
    )
    strategy.prepare(trainer, folder)
    assert torch.equal(torch.get_rng_state(), state)
    before, habits = copy.deepcopy(strategy.model), copy.deepcopy(strategy.model)
    habits.generation_config.repetition_penalty = 50.0
    written = own_text(before, 2 * OWN_STEPS, 5, 7)
    assert torch.equal(own_text(habits, 2 * OWN_STEPS, 5, 7), written)
    assert written.shape == (2 * OWN_STEPS, 5) and len(written.unique(dim=0)) == len(written)
    # nothing has changed yet
    labels = torch.tensor([[IGNORED, 3, 4]])
    assert trainer.compute_loss_func(None, labels).item() == pytest.approx(10, abs=1e-5)
    with torch.no_grad():
        for parameter in strategy.model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    rows = written[torch.randperm(len(written), generator=torch.Generator().manual_seed(10))[:2]]
    q, p = ((one(rows).logits[:, :-1].double() / 3).softmax(-1) for one in (before, strategy.model))
    # a mean over the tokens that are foretold, weighted by lam T²
    expected = 3 * 9 * (q * (q / p).log()).sum(-1).mean().item()
    assert trainer.compute_loss_func(None, labels).item() == pytest.approx(10 + expected, rel=1e-5)
    # two of the step's eight labels
    assert trainer.compute_loss_func(None, labels, 8).item() == pytest.approx(10 + expected / 4, rel=1e-5)


def test_joined_terms_are_those_of_a_plain_loop(folder, tmp_path):
    flags = {"batch": 8, "steps": 2, "warmup": 0.0, "schedule": "constant_with_warmup", "max_grad_norm": 0.0}
    settings = RunSettings(model=str(folder / "causal"), **flags)
    sets = ["lwf-own.own_rows=2", "lwf-own.own_tokens=5", "ewc.lam=3e1"]
    [chosen] = choose(["lwf-own+ewc"], sets, [], settings).values()
    kind = tiny_kind(settings)
    sequence = TaskSequence(settings, kind, folder / "causal", [], [], 0, tmp_path, None)
    strategy = sequence._strategy(chosen)
    strategy.open(None)
    model, ewc = copy.deepcopy(strategy.model), None

    def prepare(trainer, folder):
        strategy.prepare(trainer, folder)
        # AdamW would magnify what rounding leaves of the first step's divergence
        trainer.optimizer = torch.optim.SGD(strategy.model.parameters(), 0.1)

    for task in range(2):
        rows = [Example(f"{task}{word}:", f" {WORDS[9 - at]}") for at, word in enumerate(WORDS[task : task + 8])]
        strategy.begin()
        learn(kind, strategy.model, rows, settings, prepare, tmp_path / f"work{task}", task, lambda *_: None)
        strategy.save(tmp_path / f"after{task}")

        model.train()
        before = copy.deepcopy(model).eval()
        written = own_text(before, 2 * OWN_STEPS, 5, task)
        features = [kind.features(row) for row in rows]
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(2):
            drawn = written[torch.randperm(len(written), generator=torch.Generator().manual_seed(task + step))[:2]]
            q, p = ((one(drawn).logits[:, :-1] / 2).softmax(-1) for one in (before, model))
            optimizer.zero_grad()
            (loss_of(kind, model, features) + 3 * 4 * (q.detach() * (q.detach() / p).log()).sum(-1).mean()).backward()
            for name, parameter in model.named_parameters() if ewc else ():
                parameter.grad += 3e1 * ewc[name][0] * (parameter.detach() - ewc[name][1])
            optimizer.step()
        for ours, theirs in zip(strategy.model.parameters(), model.parameters()):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)
        ewc, one_by_one = {}, [[row] for row in features]
        for name, parameter in model.named_parameters():
            squares = [
                torch.autograd.grad(loss_of(kind, model.eval(), row), parameter)[0].square() for row in one_by_one
            ]
            ewc[name] = torch.stack(squares).mean(0), parameter.detach().clone()
    saved = load_file(tmp_path / "after0" / "ewc.safetensors")
    assert max(saved[name].max() for name in saved if name.startswith("fisher")) > 0


def loss_of(kind, model, features):
    """The mean loss over all labels of rows."""
    batch = kind.collator(model)(features)
    labels = batch.pop("labels")
    logits = model(**batch).logits[:, :-1].flatten(0, 1)
    return F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORED)


def test_own_text_is_for_decoders(folder, tmp_path, capsys):
    for kind in ("classifier", "seq2seq"):
        arguments = ["--model", str(folder / kind), "--data", str(folder / "data"), "--out", str(tmp_path / "out")]
        assert main(["continual", *arguments, "--method", "lwf-own"]) == 2
        assert f"lwf-own has the model go on with a text: for decoders, not a {kind}" in capsys.readouterr().err


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize(
    ("kind", "methods"),
    [("causal", "o-lora,lwf,lwf-own"), ("classifier", "lwf,replay,gsr+ewc+replay"), ("seq2seq", "osf,osf-schedule")],
)
def test_run_with_its_bounds(kind, methods, folder, tmp_path):
    arguments = ["--model", str(folder / kind), "--data", str(folder / "data"), "--out", str(tmp_path / "out")]
    sets = ["--set", "lwf.lam=3"] if "lwf" in methods else ["--set", "osf.trr=0.7"]
    assert main(["continual", *arguments, *QUICK, "--method", methods, "--bounds", *sets]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    table = (tmp_path / "out" / "table.txt").read_text()
    if kind == "causal":
        assert list(results["matrices"]) == ["O-LoRA", "LwF", "LwF-own", "PerFT", "MTL", "PerLoRA", "MTL-LoRA"]
        assert results["scratch"] == {"O-LoRA": "PerLoRA", "LwF": "PerFT", "LwF-own": "PerFT"}
        assert "MTL-LoRA all at once" in " ".join(table.split()) and "PerLoRA first only" in " ".join(table.split())
    else:
        assert list(results["matrices"])[-2:] == ["PerFT", "MTL"]
    kept = "Outside the strict setting, in which nothing is kept: LwF keeps the model before the task"
    assert (kept in table) == ("lwf" in methods)
    for name in ("Replay", "GSR+EWC+Replay"):
        assert (f"{name} keeps rows of earlier tasks" in table) == ("replay" in methods)
