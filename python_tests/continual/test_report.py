"""The words and numbers of the report against matrices made by hand."""

import random

import numpy as np
import pytest
from matplotlib.figure import Figure

from gsr_kernels.continual.choose import choose, find_baseline
from gsr_kernels.continual.differences import confidence, interval, over
from gsr_kernels.continual.figures import compared, gains, measure, summary
from gsr_kernels.continual.metrics import BEFORE, ResultMatrix, Results
from gsr_kernels.continual.plots import draw_forgetting, draw_losses, draw_spectra, lost
from gsr_kernels.continual.report import report, table, verdict
from gsr_kernels.continual.settings import RunSettings


def matrix(learned, kept, known=50.0):
    """Two tasks; both reach ``learned``, the first falls to ``kept``."""
    made = ResultMatrix(["a", "b"], known=["general"])
    made.record(BEFORE, {"general": known, "a": 10.0, "b": 10.0})
    made.record("a", {"general": known, "a": learned, "b": 10.0})
    made.record("b", {"general": known, "a": kept, "b": learned})
    return made


def found(matrices):
    """The figures of one method, a mapping a seed."""
    return measure(Results("percent", {"it": matrices}))[0]["it"]


SEQFT = [matrix(80, 40), matrix(82, 41), matrix(84, 45)]


@pytest.mark.parametrize(
    ("ours", "kept", "ended", "forgetting"),
    [
        ([matrix(80, 60), matrix(82, 60), matrix(84, 65)],
         "it lost 9.8 points less (F.Ra, 95 %: 9.1 to 10.6). It", "It ended 6.6 points higher (AP, 95 %: 6.1 to 7.0)",
         "+9.8±0.3   better"),
        ([matrix(70, 60), matrix(72, 60), matrix(74, 66)], "it lost 15.0 points less (F.Ra, 95 %",
         "having learned 10.0 points less (95 %: 10.0 to 10.0).", "better"),
        ([matrix(80, 30), matrix(82, 30), matrix(84, 35)],
         "it lost 5.2 points more (F.Ra, 95 %: 4.4 to 5.9)", "It ended 3.4 points lower (AP, 95 %", "-5.2±0.3   worse"),
        # beyond one deviation, but not beyond what three seeds show by chance
        ([matrix(80, 50), matrix(82, 44), matrix(84, 47)],
         "it lost 2.5 points less (F.Ra, perhaps by chance, 95 %: 2.9 more to 7.9 less)",
         "It ended 1.7 points higher (AP, perhaps by chance", "+2.5±2.2   unclear"),
        # what is kept is unclear, where it ended is not
        ([matrix(90, 52), matrix(92, 47), matrix(94, 56)], "it lost 0.2 points more (F.Ra, perhaps by chance",
         "It ended 6.6 points higher (AP, 95 %: 3.9 to 9.2)", "unclear"),
        # one seed above and one below
        ([matrix(81, 40), matrix(81, 41), matrix(84, 45)], "it lost as much (F.Ra, perhaps by chance, 95 %",
         "It ended as high (AP, ", "+0.0±0.5   unclear"),
        (SEQFT, "it lost as much (F.Ra).", "It ended as high (AP), having learned as much.", "+0.0±0.0   unclear"),
    ],
)  # fmt: skip
def test_the_verdict_says_what_is_kept_and_where_it_ended(ours, kept, ended, forgetting):
    text = verdict("GSR", found(ours), found(SEQFT))
    sentences, _, lines = text.partition("\nSeed by seed, + is better:\n")
    sentences = sentences.replace("\n", " ")
    assert sentences.startswith("GSR against SeqFT: it lost") and kept in sentences and ended in sentences
    assert forgetting in lines.splitlines()[0] and lines.startswith("  F.Ra")


def test_one_seed_cannot_tell():
    text = verdict("GSR", found([matrix(80, 70)]), found(SEQFT[:1]))
    assert text.startswith(
        "GSR against SeqFT: it lost 15.0 points less (F.Ra). It ended 10.0 points higher (AP), having"
    )
    assert "One seed cannot tell this from chance." in text.replace("\n", " ") and "better" not in text.splitlines()[-1]


def test_rounding_is_no_difference():
    # thirds whose means are equal but for the last bit
    unlike = [matrix(a / 3, b / 3) for a, b in ((1, 1), (2, 1))]
    ours, theirs = [{**each, "AP": each["AP"] - 1e-14} for each in found(unlike)], found(unlike)
    assert compared(gains(ours, theirs))["AP"]["verdict"] == "unclear"
    assert "It ended as high (AP), having" in verdict("GSR", ours, theirs)
    assert over([-1 / 3, 1 / 3 - 1e-14]) == "0.0±0.5"


# two-sided 95 % quantiles of Student's t
@pytest.mark.parametrize(
    ("freedom", "t"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (5, 2.57058), (9, 2.26216), (30, 2.04227)],
)
def test_confidence_is_that_of_student(freedom, t):
    values = np.random.default_rng(freedom).normal(size=freedom + 1)
    standard = (values - values.mean()) / values.std(ddof=1) * np.sqrt(freedom + 1)
    assert confidence((standard + t).tolist()) == pytest.approx(0.95, abs=1e-5)
    assert confidence((standard - t).tolist()) == pytest.approx(0.95, abs=1e-5)
    low, high = interval((standard + 3).tolist())
    assert (3 - low, high - 3) == pytest.approx((t, t), rel=1e-5)
    assert confidence([0.0] * (freedom + 1)) == 0
    assert confidence([0.5] * (freedom + 1)) == pytest.approx(1)


def test_all_figures_of_every_seed_against_any_baseline():
    perft = [matrix(90, 50), matrix(90, 50), matrix(90, 50)]
    ours = [matrix(80, 60), matrix(82, 60), matrix(84, 65)]
    results = Results(
        "percent", {"SeqFT": SEQFT, "GSR": ours, "PerFT": perft}, rows={"general": 1, "a": 2, "b": 1},
        seeds=(42, 7, 8), scratch={"GSR": "PerFT", "SeqFT": ""}, baseline="GSR",
    )  # fmt: skip
    told = summary(results)
    assert told["figures"]["GSR"][0] == pytest.approx(
        {
            "F.Ra": 10,
            "AP": 190 / 3,
            "learned": 80,
            "Acc": 62.5,
            "BWT": -10,
            "FWT": -80,
            "FR": 10,
            "AAA": (65 + 190 / 3) / 2,
        }
    )
    assert "FWT" not in told["figures"]["SeqFT"][0] and told["lacking"] == {
        "FWT": "FWT needs a model that learned each task alone (--bounds)"
    }
    gain = told["gains"]["SeqFT"]["F.Ra"]
    assert gain["mean"] == pytest.approx(-59 / 6) and gain["verdict"] == "worse" and gain["interval"][1] < 0
    text = report(results, "conditions")
    assert "SeqFT against GSR: it lost 9.8 points more (F.Ra" in text and "Without FWT: FWT needs a model" in text
    assert [line.split()[2:] for line in text.splitlines() if line.strip().startswith("seed 42")] == [
        ["20.0", "56.7", "80.0", "52.5", "-20.0", "–", "20.0", "60.8"],
        ["10.0", "63.3", "80.0", "62.5", "-10.0", "-80.0", "10.0", "64.2"],
    ]


def test_validation_rows_choose_of_a_sweep_and_test_rows_do_not():
    good, bad = [matrix(90, 90), matrix(90, 80)], [matrix(50, 50), matrix(50, 40)]
    matrices = {"SeqFT lr=1": bad, "SeqFT lr=2": good, "GSR": good, "PerFT lr=1": good, "PerFT lr=2": bad}
    # the other way round
    validation = {"SeqFT lr=1": good, "SeqFT lr=2": bad, "GSR": good, "PerFT lr=1": bad, "PerFT lr=2": good}
    sweeps = {title: [f"{title} lr={value}" for value in (1, 2)] for title in ("SeqFT", "PerFT")}
    results = Results("percent", matrices, seeds=(0, 1), validation=validation, sweeps=sweeps)
    told = summary(results)
    assert told["chosen"]["SeqFT"] == pytest.approx({"SeqFT lr=1": (230 / 3 + 220 / 3) / 2, "SeqFT lr=2": 145 / 3})
    # each task alone counts as it was learned
    assert [*told["chosen"]["PerFT"].items()] == [("PerFT lr=2", 90), ("PerFT lr=1", 50)]
    assert told["baseline"] == "SeqFT lr=1" and told["gains"].keys() == {"GSR", "SeqFT lr=2"}
    text = report(results, "conditions")
    assert "  SeqFT: lr=1 (75.0); then lr=2 (48.3)\n" in text and "GSR against SeqFT lr=1: it lost" in text
    assert "not by the test rows" in text and "On the validation rows, which are not learned" in text
    # one that diverged is none, and a sweep that is not whole has no choice
    results.diverged["SeqFT lr=1"] = "seed 1"
    results.validation["PerFT lr=2"] = good[:1]
    assert summary(results)["chosen"] == {"SeqFT": {"SeqFT lr=2": pytest.approx(145 / 3)}}
    results.validation = {}
    assert "No value of --sweep is chosen: test rows choose none" in report(results, "conditions")


def test_mean_and_deviation():
    assert over([1.0]) == "1.0"
    assert over([1.0, 3.0]) == "2.0±1.4"
    assert over([1.0], "+") == "+1.0"


def test_every_row_of_the_table_adds_up():
    swept = table({"SeqFT": SEQFT, "PerFT lr=0.1": SEQFT, "MTL lr=0.1": SEQFT})
    assert "a only" in swept and "all at once" in swept
    lines = table({"SeqFT": SEQFT, "PerFT": SEQFT, "MTL": SEQFT}).splitlines()
    rows = {" ".join(line.split()[:2]): line.split() for line in lines if line}
    assert lines[0].split() == ["after", "general", "a", "b", "F.Ra", "AP"]
    assert rows["start 50.0±0.0"][1:] == ["50.0±0.0", "10.0±0.0", "10.0±0.0", "23.3±0.0"]
    # general lost nothing, a lost 40, 41 and 39
    assert rows["SeqFT b"][2:] == ["50.0±0.0", "42.0±2.6", "82.0±2.0", "20.0±0.5", "58.0±1.5"]
    assert rows["PerFT a"][2:] == ["only", "50.0±0.0", "82.0±2.0", "10.0±0.0", "47.3±0.7"]
    assert rows["MTL all"][2:] == ["at", "once", "50.0±0.0", "42.0±2.6", "82.0±2.0", "58.0±1.5"]


def test_what_is_lost_is_what_fra_averages():
    generator = random.Random(0)
    made = ResultMatrix(["a", "b", "c"], known=["general"])
    for row in (BEFORE, *made.tasks):
        made.record(row, {name: generator.uniform(0, 100) for name in made.columns})
    losses = lost(made)
    assert np.isnan(losses).tolist() == [[False, True, True], [False, False, True], [False] * 3]
    for row, task in zip(losses, made.tasks):
        assert np.nanmean(row) == pytest.approx(made.fra(task))


@pytest.mark.parametrize("methods", [1, 4])
def test_pictures_of_any_number_of_methods(methods, tmp_path):
    titles = [f"method {i}" for i in range(methods)]
    sigma = {"up.weight": [3.0, 2.0, 1.0], "down.weight": [2.0, 1.0]}
    results = Results(
        "percent",
        {**dict.fromkeys(titles, SEQFT), "MTL": SEQFT},
        {title: {BEFORE: sigma, "a": sigma, "b": sigma} for title in titles},
    )
    for draw in (draw_forgetting, draw_spectra):
        draw(results, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_long_names_above_the_losses_are_slanted(monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.append(figure))
    for tasks in (["a", "b"], [f"{task}-plausible-alternatives" for task in range(15)]):
        losses = {"SeqFT": {task: [(1, 2.0), (3, 1.0)] for task in tasks}}
        draw_losses(Results("percent", {"SeqFT": [SEQFT]}, losses=losses), "")
    names = [figure.axes[0].child_axes[0].get_xticklabels() for figure in drawn]
    assert [(len(each), {name.get_rotation() for name in each}) for each in names] == [(2, {0.0}), (15, {45.0})]


def test_a_swept_baseline_is_called_by_its_method_or_by_one_of_its_values():
    swept = choose(("seqft", "gsr"), [], ["gsr.rho=0,0.5"], RunSettings())
    called = {"gsr": "GSR", "GSR": "GSR", "gsr.rho=0.5": "GSR rho=0.5", "GSR rho=0": "GSR rho=0", "seqft": "SeqFT"}
    assert {name: find_baseline(name, swept) for name in called} == called
    with pytest.raises(ValueError, match="baseline psp is no method of this run, which has seqft, gsr, "):
        find_baseline("psp", swept)
