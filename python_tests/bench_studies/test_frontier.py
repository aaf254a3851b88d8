"""The frontier's mathematics: curves, levels of learning, pairs by seed."""

import dataclasses
import json

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from bench.docs import evidence
from bench.studies import __main__, best_case, encoder, frontier, language, language_model
from bench.studies.answer import Answer, mark
from bench.studies.curves import AP, Point, at_learning, curves, reaches
from bench.studies.frontier import Run
from bench.studies.stats import Comparison, Interval
from bench.studies.study import KEPT, Configuration, Plan
from bench.studies.tables import Judged
from gsr_kernels.continual.choose import choose
from gsr_kernels.continual.kinds import Causal, Classifier
from gsr_kernels.continual.memory import needed
from gsr_kernels.continual.settings import RunSettings

CURVE = [
    Point(lr, learning, {KEPT: kept}) for lr, learning, kept in ((0, 10, 100), (1, 30, 60), (2, 50, 0), (3, 40, 5))
]
STUDY = dataclasses.replace(
    language.STUDY,
    configurations={
        name: Configuration(name.upper(), name, (1e-3,), {}, memory) for name, memory in (("seqft", 0), ("gsr", 0.7))
    },
    plan=Plan(2e-3, {"seqft": (1e-3, 2e-3), "gsr": (1e-3, 3e-3)}),
    gone={"old": "OLD"},
)


def record(name, lr, seed, learned, final, text):
    scores = {"before": [10, 10], "learned": [learned] * 2, "final": [final] * 2, "text": [2.0, 2.0 * text]}
    return {"name": name, "lr": lr, "seed": seed, "tasks": ["a", "b"], "seconds": 1.0 + lr} | scores


@pytest.mark.parametrize(
    ("learning", "kept"),
    # at a point, between two, at the first of two crossings, where all begins, and beyond: along the last rise
    [(30, 60), (20, 80), (45, 15), (10, 100), (35, 45), (55, 0)],
)
def test_what_is_kept_lies_on_straight_lines_between_rates(learning, kept):
    assert at_learning(CURVE, learning, KEPT) == pytest.approx(kept)
    assert reaches(CURVE, learning) == (learning <= 50)


def test_a_curve_that_stays_below_goes_on():
    low = [Point(0, 10, {KEPT: 100}), Point(1, 30, {KEPT: 80})]
    assert at_learning(low[::-1], 40, KEPT) == pytest.approx(70)
    with pytest.raises(ValueError, match="at least two points"):
        at_learning(low[:1], 40, KEPT)


def test_curves_begin_with_no_training_and_leave_out_what_diverged():
    made = [record("seqft", 2e-3, 0, 50, 30, 0.25), record("seqft", 1e-3, 0, 40, 35, 0.5)]
    made.append({"name": "seqft", "lr": 1.0, "seed": 0, "diverged": "the loss is nan"})
    start, low, high = curves(made)["seqft"][0]
    assert start == Point(0, 10, {AP: 10, KEPT: 100})
    assert (low, high) == (Point(1e-3, 40, {AP: 35, KEPT: 50}), Point(2e-3, 50, {AP: 30, KEPT: 25}))


@pytest.fixture
def answer(tmp_path):
    """Three fresh seeds, of which the last lacks a rate, and one of the tuning seeds."""
    made = []
    for seed in (0, 1, 2, 1000):
        made += [record("seqft", 1e-3, seed, 40 + seed, 35, 0.6), record("seqft", 2e-3, seed, 50 + seed, 30, 0.2)]
        made += [record("gsr", 1e-3, seed, 45 + seed, 35, 0.5), record("gsr", 3e-3, seed, 55 + seed, 45, 0.3)]
    made[-5:-4] = []
    made.append(record("old", 1e-3, 1000, 20, 20, 0.9))
    for each in made:
        frontier.keep(tmp_path / frontier.RUNS, each)
    return Answer(STUDY, tmp_path / frontier.RUNS)


def test_seeds_are_compared_in_pairs_at_the_baselines_learning(answer):
    assert {name: list(of) for name, of in answer.planned().items()} == {"seqft": [0, 1, 2], "gsr": [0, 1]}
    whole = answer.compared(1.0)
    # half way between GSR's two rates: 40 % of the text and a mean score of 40
    assert "| GSR: held-out kept | 2 | 20.0 [20.0, 20.0] | 0.500 | 1.000 |" in whole
    assert "| GSR: AP | 2 | 10.0 [10.0, 10.0] | 0.500 | 1.000 |" in whole
    # the same from the other side
    assert "| SeqFT: AP | 2 | -10.0".upper() in answer.compared(1.0, "gsr").upper()
    # 45 of seed 0 is GSR's lower rate, and lies half way between SeqFT's
    assert answer.levels(0.9)[0] == pytest.approx(45)
    assert (
        "| GSR | 0.7 × | 1.0 × | 40.0 [40.0, 40.0] | 40.0 [40.0, 40.0] | 2 of 2 | 45.0 [45.0, 45.0] |"
        in answer.answer()
    )
    # the tuning seed's AP chose 1e-3 of SeqFT and 3e-3 of GSR
    at_best = answer.compared_at_own_rates()
    assert "difference in AP from SEQFT, 0.001 |" in at_best and "| GSR, 0.003 | 2 | 10.0 [10.0, 10.0] |" in at_best
    tuned, fresh = answer.rates(answer.tuned), answer.rates(answer.fresh)
    assert "| OLD | 0.001 | 1 | 20.0 | 20.0 | 90.0 |" in tuned and "OLD" not in fresh
    assert "| GSR | 0.003 | 2 | 55.5 | 45.0 | 30.0 |" in fresh


@pytest.mark.parametrize(
    ("p", "difference", "shown"),
    [(0.009, 1, " ▲"), (0.009, -1, " ▼"), (0.049, 1, " △"), (0.049, -1, " ▽"), (0.05, 1, ""), (None, 1, "")],
)
def test_a_difference_is_marked_by_its_p_after_correction(p, difference, shown):
    comparison = Comparison(Interval(difference, 0, 0), 0.001, 1, False)
    assert mark(None if p is None else Judged(16, comparison, p)) == shown


def test_marks_are_of_planned_tests_alone():
    """The writer's plan has no test at the best rates, the classifier's has one; the page is held against both."""
    writer, classifier = evidence.PAGE.read_text(encoding="utf-8").split("<!-- bench:encoder frontier -->")
    for text, marked in ((writer, False), (classifier, True)):
        rows = [line for line in text.splitlines() if " of 1" in line]
        own = [row.split(" | ")[-1] for row in rows]
        assert any("▲" in row for row in rows) and any("▲" in each for each in own) == marked
        # neither the baseline nor what was added later is in a family
        assert not [row for row in rows if row.startswith("| SeqFT") and set("▲▼△▽") & {*row}]


def test_the_extra_memory_is_what_the_runner_plans():
    with torch.device("meta"):
        writer = LlamaForCausalLM(LlamaConfig(vocab_size=language_model.VOCABULARY, **language_model.SHAPE))
        # the shape of the encoder's package
        shape = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
        classifier = BertForSequenceClassification(BertConfig(**shape, num_labels=23))
    for model, kind, study in ((writer, Causal, language.STUDY), (classifier, Classifier, encoder.STUDY)):
        whole = 4 * sum(parameter.numel() for parameter in model.parameters())
        # those of one method and rank alone
        for one in {(each.method, each.memory): each for each in study.configurations.values()}.values():
            sets = [f"{key}={value}" for key, value in one.settings.items()]
            [chosen] = choose([one.method], sets, [], RunSettings()).values()
            found = needed(model, object.__new__(kind), chosen, (8, 8))
            held = found.weights + found.gradients + found.moments + found.bases
            # a mean gradient, a batch's and protected inputs, at a task's end alone
            at_the_end = found.kept if one.method == "eblora" else 0
            assert round((held + found.kept - at_the_end) / whole - 4, 1) == one.memory, one.title
            assert round(at_the_end / whole, 1) == (3.6 if at_the_end else 0)


def test_seeds_are_level_and_tuning_comes_first_seed_by_seed():
    assert [each.seed for each in frontier.tuning(STUDY)] == [1000, 1000, 1001, 1001]
    planned = list(frontier.planned(STUDY))
    assert planned[:4] == [Run("seqft", 1e-3, 0), Run("seqft", 2e-3, 0), Run("gsr", 1e-3, 0), Run("gsr", 3e-3, 0)]
    assert len(planned) == 4 * len(frontier.SEEDS)


def test_packed_runs_are_the_same_bytes_in_any_order(tmp_path):
    made = [record("seqft", lr, seed, 40, 30, 0.5) for lr in (1e-3, 2e-3) for seed in (0, 1)]
    packed = []
    for number, order in enumerate((made, made[::-1])):
        work = tmp_path / str(number)
        (work / STUDY.name).mkdir(parents=True)
        (work / frontier.CONDITIONS).write_text("{}")
        (work / frontier.RUNS).write_text("".join(json.dumps(each) + "\n" for each in order))
        frontier.pack(STUDY, work, work)
        packed.append((work / STUDY.name / frontier.PACKED).read_bytes())
        assert sorted(map(str, frontier.read(work / STUDY.name / frontier.PACKED))) == sorted(map(str, made))
    assert packed[0] == packed[1]


def test_without_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"bench\.studies language tune"):
        Answer(STUDY, tmp_path / frontier.PACKED)
    with pytest.raises(FileNotFoundError, match="is not prepared"):
        __main__.main(["language", "fresh", "--work", str(tmp_path)])


def test_the_best_case_needs_no_folder(monkeypatch):
    called = []
    monkeypatch.setattr(best_case, "run", lambda: called.append("run"))
    __main__.main(["best-case"])
    assert called == ["run"]
