"""The queue's plan and the report, from a handful of made-up runs."""

import json

import numpy as np
import pytest

from bench.docs import evidence
from bench.studies import encoder_runs, encoder_tables, queue
from bench.studies.encoder_methods import CONFIGURATIONS
from bench.studies.encoder_train import ORDERS, Run

METHODS = ["seqft", "gsr-full"]
NAMES = [
    "gate", "outcome", "AP against SeqFT", "BWT against SeqFT", "learning accuracy against SeqFT", "against each other",
    "rates", "matrices",
]  # fmt: skip


def record(run: Run, rng) -> dict:
    tasks = ORDERS.get(run.order, (run.order,))
    full = rng.uniform(0.2, 0.9, (len(tasks), len(tasks))).tolist()
    last = len(tasks) - 1
    matrix = [[x if run.whole or i in (j, last) else None for j, x in enumerate(row)] for i, row in enumerate(full)]
    return {
        "method": run.method,
        "order": run.order,
        "lr": run.lr,
        "seed": run.seed,
        "whole": run.whole,
        "tasks": list(tasks),
        "majority": [0.25] * len(tasks),
        "matrix": matrix,
        "validation": rng.uniform(0.2, 0.9, 2).tolist() if last else [],
        "plasticity": float(np.mean(np.diag(full))),
    }


def do_all(plan, results, records, rng):
    """Work a plan as the queue does, with made-up runs."""
    while missing := [run for run in plan(records) if not encoder_runs.path(results, run).exists()]:
        for run in missing:
            queue.write(encoder_runs.path(results, run), record(run, rng))
        records = queue.read(results)
    return records


@pytest.fixture
def results(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "results"
    records = do_all(encoder_runs.gate, folder, [], rng)
    do_all(lambda found: encoder_runs.comparison(found, METHODS), folder, records, rng)
    return folder


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "evidence.md"
    path.write_text("".join(f"# {name}\nprose\n<!-- bench:{name} -->\nold\n<!-- /bench:{name} -->\n" for name in NAMES))
    return path


def test_seeds_follow_the_rate_chosen_on_validation_rows():
    rng = np.random.default_rng(0)
    tuned = [record(run, rng) for run in encoder_runs.comparison([], ["seqft"])]
    assert [r["lr"] for r in tuned] == list(encoder_runs.RATES)
    assert encoder_runs.rate(tuned[:-1], "seqft") is None
    for r, validation in zip(tuned, ([0.9, 0.1], [0.5, 0.6], [0.6, 0.5])):
        r["validation"] = validation
    # the lower rate wins the tie
    assert encoder_runs.rate(tuned, "seqft") == encoder_runs.RATES[1]
    planned = list(encoder_runs.comparison(tuned, ["seqft"]))[len(tuned) :]
    assert [run.seed for run in planned] == list(queue.SEEDS)
    assert {run.lr for run in planned} == {encoder_runs.RATES[1]}
    assert [run.order for run in planned[:2]] == ["forth", "back"]
    assert [run.whole for run in planned] == [True] + [False] * 7


def test_rates_widen_until_the_best_is_inside():
    rng = np.random.default_rng(0)
    tuned = []
    for expected in (list(encoder_runs.RATES), [*encoder_runs.RATES, 7.5e-4], [*encoder_runs.RATES, 7.5e-4, 1.9e-3]):
        assert queue.rates(tuned, "seqft", encoder_runs.RATES, encoder_runs.GRID) == expected
        assert encoder_runs.rate(tuned, "seqft") is None
        tuned = [record(Run("seqft", "forth", lr, queue.TUNING_SEED), rng) for lr in expected]
        for r in tuned:
            r["validation"] = [r["lr"], r["lr"]]
    assert encoder_runs.rate(tuned, "seqft") == 1.9e-3


def test_orders_hold_the_same_tasks():
    assert sorted(ORDERS["forth"]) == sorted(ORDERS["back"])


def test_tables_hold_what_the_runs_hold(results):
    records = queue.read(results)
    lr = encoder_runs.rate(records, "gsr-full")
    runs = [r for r in records if r["method"] == "gsr-full" and r["seed"] < 8 and r["lr"] == lr]
    last = [np.mean(r["matrix"][-1]) for r in runs]
    (row,) = [
        line
        for line in encoder_tables.blocks(records)["outcome"].splitlines()
        if CONFIGURATIONS["gsr-full"].title in line
    ]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:3] == [f"{lr:g}", "8"]
    assert cells[3].startswith(f"{100 * np.mean(last):.1f} [")
    backward = [np.mean([r["matrix"][-1][i] - r["matrix"][i][i] for i in range(3)]) for r in runs]
    assert cells[4].startswith(f"{100 * np.mean(backward):.1f} [")


def test_report_is_the_same_when_written_twice(results, page):
    evidence.write_encoder(page, results)
    drawn = {path: path.read_bytes() for path in [page, *page.with_suffix("").iterdir()]}
    evidence.write_encoder(page, results)
    assert {path: path.read_bytes() for path in drawn} == drawn
    text = page.read_text()
    assert "old" not in text
    assert text.count("prose") == len(NAMES)
    assert len(drawn) == 3


def test_report_without_runs_or_markers(results, page, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"bench\.studies encoder run"):
        evidence.write_encoder(page, tmp_path / "nothing")
    page.write_text("no markers")
    with pytest.raises(ValueError, match="must hold the marks bench:gate once, found 0"):
        evidence.write_encoder(page, results)
    assert page.read_text() == "no markers"


def test_a_result_appears_whole(tmp_path):
    path = tmp_path / "seqft" / "run.json"
    queue.write(path, {"method": "seqft"})
    assert json.loads(path.read_text()) == {"method": "seqft"}
    assert list(path.parent.iterdir()) == [path]
