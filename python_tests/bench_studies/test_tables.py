"""The appendix's tables, from a handful of made-up runs, and the committed ones."""

import dataclasses
import json

import numpy as np
import pytest

from bench.docs import evidence
from bench.docs.pages import filled
from bench.results import RESULTS
from bench.studies import encoder
from bench.studies.answer import Answer
from bench.studies.frontier import PACKED
from bench.studies.tables import RUNS, TUNING_SEED, Tables, tuned_by

BOTH = {name: encoder.EARLIER.methods[name] for name in ("seqft", "gsr-full")}
EARLIER = dataclasses.replace(encoder.EARLIER, methods=BOTH, pairs=(("a question", "gsr-full", "seqft"),))
STUDY = dataclasses.replace(encoder.STUDY, earlier=EARLIER)
RATES = (5e-5, 1.2e-4, 3e-4)


def record(method, lr, seed, rng):
    tasks = STUDY.tasks
    matrix = rng.uniform(0.2, 0.9, (len(tasks), len(tasks))).tolist()
    made = {"method": method, "lr": lr, "seed": seed, "tasks": list(tasks), "before": [0.25] * len(tasks)}
    return made | {"matrix": matrix}


def write(folder, records):
    folder.mkdir(exist_ok=True)
    (folder / RUNS).write_text("".join(json.dumps(each) + "\n" for each in records))
    return folder


@pytest.fixture
def results(tmp_path):
    """Each task alone, every rate once, and at every rate eight seeds."""
    rng = np.random.default_rng(0)
    made = [record("perft", 1.2e-4, TUNING_SEED, rng)]
    made += [record(method, lr, seed, rng) for method in BOTH for lr in RATES for seed in (TUNING_SEED, *range(8))]
    return write(tmp_path / "results", made)


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "evidence.md"
    marks = [f"encoder {name}" for name in EARLIER.shown]
    path.write_text("".join(f"# {name}\nprose\n<!-- bench:{name} -->\nold\n<!-- /bench:{name} -->\n" for name in marks))
    return path


def test_the_rate_is_the_one_that_scored_best_in_tuning(tmp_path):
    rng, scores = np.random.default_rng(0), ([0.9, 0.1], [0.5, 0.6], [0.6, 0.5])
    tuned = [record("seqft", lr, TUNING_SEED, rng) for lr in RATES]
    tuned = [{**each, "matrix": [*each["matrix"][:-1], score]} for each, score in zip(tuned, scores)]
    alone = dataclasses.replace(STUDY, earlier=dataclasses.replace(EARLIER, methods={"seqft": "SeqFT"}))
    # the lower rate wins the tie
    assert Tables(alone, write(tmp_path / "results", tuned)).rates == {"seqft": RATES[1]}
    # validation rows, where there are some, come before the last scores
    assert tuned_by({**tuned[0], "validation": [3]}) == [3]


def test_tables_hold_what_the_runs_hold(results):
    found = Tables(STUDY, results)
    lr = found.rates["gsr-full"]
    runs = [r for r in found.records if r["method"] == "gsr-full" and r["seed"] < 8 and r["lr"] == lr]
    outcome = found.blocks()["encoder outcome"].splitlines()
    (row,) = [line for line in outcome if BOTH["gsr-full"] in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:3] == [f"{lr:g}", "8"]
    assert cells[3].startswith(f"{100 * np.mean([np.mean(r['matrix'][-1]) for r in runs]):.1f} [")
    backward = [np.mean([r["matrix"][-1][i] - r["matrix"][i][i] for i in range(3)]) for r in runs]
    assert cells[4].startswith(f"{100 * np.mean(backward):.1f} [")
    assert "| before any task |  | 8 | 25.0 [25.0, 25.0] |" in found.outcome()


def test_report_is_the_same_when_written_twice(results, page):
    evidence.write_earlier(STUDY, results, page)
    drawn = {path: path.read_bytes() for path in [page, *page.with_suffix("").iterdir()]}
    evidence.write_earlier(STUDY, results, page)
    assert {path: path.read_bytes() for path in drawn} == drawn
    text = page.read_text()
    assert "old" not in text
    assert text.count("prose") == len(EARLIER.shown)
    assert len(drawn) == 3


def test_report_without_markers(results, page):
    page.write_text("no markers")
    with pytest.raises(ValueError, match=r"must hold the marks bench:encoder \w+ once, found 0"):
        evidence.write_earlier(STUDY, results, page)
    assert page.read_text() == "no markers"


@pytest.mark.parametrize("study", evidence.STUDIES, ids=lambda study: study.name)
def test_what_is_committed_makes_the_committed_tables(study):
    page, appendix = (each.read_text(encoding="utf-8") for each in (evidence.PAGE, evidence.APPENDIX))
    blocks, packed = Tables(study, RESULTS / study.name).blocks(), RESULTS / study.name / PACKED
    if packed.exists():
        answer = Answer(study, packed)
        blocks |= answer.appendix()
        assert filled(page, answer.page()) == page
    assert filled(appendix, blocks) == appendix
