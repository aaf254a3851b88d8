"""The queue's plan and the tables, from a handful of made-up runs."""

import dataclasses
import json

import numpy as np
import pytest

from bench.docs import evidence
from bench.docs.pages import filled
from bench.results import RESULTS
from bench.studies import encoder, language, queue
from bench.studies.queue import Run
from bench.studies.tables import Tables

BOTH = {name: encoder.STUDY.methods[name] for name in ("seqft", "gsr-full")}
STUDY = dataclasses.replace(encoder.STUDY, methods=BOTH, pairs=(("a question", "gsr-full", "seqft"),))
FIRST = STUDY.first_rates("seqft")


def record(run: Run, rng) -> dict:
    tasks = STUDY.orders[run.order]
    matrix = rng.uniform(0.2, 0.9, (len(tasks), len(tasks))).tolist()
    return dataclasses.asdict(run) | {"tasks": list(tasks), "before": [0.25] * len(tasks), "matrix": matrix}


def do_all(plan, folder, rng):
    """Work a plan as the queue does, with made-up runs."""
    while missing := [run for run in plan(STUDY, queue.read(folder)) if not {run.name} & names(folder)]:
        for run in missing:
            queue.keep(folder, record(run, rng))


def names(folder):
    return {Run(r["method"], r["order"], r["lr"], r["seed"]).name for r in queue.read(folder)}


@pytest.fixture
def results(tmp_path):
    rng, folder = np.random.default_rng(0), tmp_path / "results"
    folder.mkdir()
    do_all(queue.gate, folder, rng)
    do_all(queue.comparison, folder, rng)
    return folder


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "evidence.md"
    marks = [f"encoder {name}" for name in STUDY.shown]
    path.write_text("".join(f"# {name}\nprose\n<!-- bench:{name} -->\nold\n<!-- /bench:{name} -->\n" for name in marks))
    return path


def scored(lr, scores, rng):
    made = record(Run("seqft", "forth", lr, queue.TUNING_SEED), rng)
    return {**made, "matrix": [*made["matrix"][:-1], scores]}


def test_seeds_follow_the_rate_that_tuning_chose():
    rng = np.random.default_rng(0)
    alone = dataclasses.replace(STUDY, methods={"seqft": BOTH["seqft"]})
    assert [(run.lr, run.seed) for run in queue.comparison(alone, [])] == [(lr, queue.TUNING_SEED) for lr in FIRST]
    # the lower rate wins the tie
    tuned = [scored(lr, score, rng) for lr, score in zip(FIRST, ([0.9, 0.1], [0.5, 0.6], [0.6, 0.5]))]
    assert queue.rate(alone, tuned[:-1], "seqft") is None and queue.rate(alone, tuned, "seqft") == FIRST[1]
    # validation rows, where there are some, come before the last scores
    told = [{**each, "validation": [lr]} for each, lr in zip(tuned, (3, 2, 1))]
    assert queue.tuned_by(told[0]) == [3]
    planned = list(queue.comparison(alone, tuned))[len(tuned) :]
    assert [run.seed for run in planned] == list(queue.SEEDS) and {run.lr for run in planned} == {FIRST[1]}
    assert [run.order for run in planned[:2]] == ["forth", "back"]


def test_rates_widen_until_the_best_is_inside():
    rng, tuned = np.random.default_rng(0), []
    for expected in (list(FIRST), [*FIRST, 7.5e-4], [*FIRST, 7.5e-4, 1.9e-3]):
        assert queue.rates(STUDY, tuned, "seqft") == expected
        assert queue.rate(STUDY, tuned, "seqft") is None
        tuned = [scored(lr, [lr, lr], rng) for lr in expected]
    assert queue.rate(STUDY, tuned, "seqft") == 1.9e-3


def test_the_baseline_is_run_at_the_others_rates_as_well(results):
    rates = {method: queue.rate(STUDY, queue.read(results), method) for method in BOTH}
    others = {run.lr for run in queue.comparison(STUDY, queue.read(results)) if run.method == "seqft" and run.seed < 8}
    assert others == set(rates.values())
    # what the runner lacks is shown and not run
    planned = {run.method for run in queue.comparison(encoder.STUDY, [])}
    assert planned == encoder.STUDY.methods.keys() - {"gsr-keep"}


@pytest.mark.parametrize("study", evidence.STUDIES, ids=lambda study: study.name)
def test_orders_hold_the_same_tasks(study):
    assert sorted(study.orders["forth"]) == sorted(study.orders["back"])


def test_tables_hold_what_the_runs_hold(results):
    found = Tables(STUDY, results)
    lr = found.rates["gsr-full"]
    runs = [r for r in found.records if r["method"] == "gsr-full" and r["seed"] < 8 and r["lr"] == lr]
    outcome = found.blocks()["encoder outcome"].splitlines()
    (row,) = [line for line in outcome if BOTH["gsr-full"].title in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:3] == [f"{lr:g}", "8"]
    assert cells[3].startswith(f"{100 * np.mean([np.mean(r['matrix'][-1]) for r in runs]):.1f} [")
    backward = [np.mean([r["matrix"][-1][i] - r["matrix"][i][i] for i in range(3)]) for r in runs]
    assert cells[4].startswith(f"{100 * np.mean(backward):.1f} [")
    assert "| before any task |  | 8 | 25.0 [25.0, 25.0] |" in found.outcome()


def test_report_is_the_same_when_written_twice(results, page):
    evidence.write_study(STUDY, results, page)
    drawn = {path: path.read_bytes() for path in [page, *page.with_suffix("").iterdir()]}
    evidence.write_study(STUDY, results, page)
    assert {path: path.read_bytes() for path in drawn} == drawn
    text = page.read_text()
    assert "old" not in text
    assert text.count("prose") == len(STUDY.shown)
    assert len(drawn) == 3


def test_report_without_runs_or_markers(results, page, tmp_path):
    for study in (encoder.STUDY, language.STUDY):
        with pytest.raises(FileNotFoundError, match=rf"bench\.studies {study.name} run"):
            evidence.write_study(study, tmp_path / "nothing", page)
    page.write_text("no markers")
    with pytest.raises(ValueError, match=r"must hold the marks bench:encoder \w+ once, found 0"):
        evidence.write_study(STUDY, results, page)
    assert page.read_text() == "no markers"


def test_a_record_appears_whole(tmp_path):
    for method in ("seqft", "gsr"):
        queue.keep(tmp_path, {"method": method})
    assert [json.loads(line)["method"] for line in (tmp_path / queue.RUNS).read_text().splitlines()] == ["seqft", "gsr"]
    assert list(tmp_path.iterdir()) == [tmp_path / queue.RUNS]


@pytest.mark.parametrize("study", evidence.STUDIES, ids=lambda study: study.name)
def test_what_is_committed_makes_the_committed_tables(study):
    page = evidence.PAGE.read_text(encoding="utf-8")
    assert filled(page, Tables(study, RESULTS / study.name).blocks()) == page
