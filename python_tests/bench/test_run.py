"""What a comparison does with its variants, on a clock of our own."""

import pytest
import torch

from bench import run as runs
from bench.models import Model
from bench.run import Run, Setting, Target, Trial
from bench.timing import H200
from gsr_kernels.cli.floors import Work

WORK = {"ours": [Work(0, 43 * 10**8)], "theirs": [Work(0, 43 * 10**8)]}


@pytest.fixture
def compare(monkeypatch):
    """Rows of a comparison where each variant's run returns the milliseconds that it takes."""
    monkeypatch.setattr(runs, "timed", lambda variants, *_: {name: [one()] for name, one in variants.items()})
    monkeypatch.setattr(Run, "on_gpu", True)

    def compare(trials, targets=None, dry=False):
        setting = Setting(Model("none", {}, {}))
        run = Run(setting, H200, torch.device("cpu"), dry)
        makers = {name: (lambda one=one: one) for name, one in trials.items()}
        return {row["variant"]: row for row in run.compare({}, WORK, lambda: makers, "theirs", targets)}

    return compare


def taking(ms, **others):
    return Trial(lambda: ms, **others)


@pytest.mark.parametrize(
    ("target", "verdict"),
    [
        (Target(2.5), "2.00 x floor, target <= 2.5: met"),
        (Target(1.6), "2.00 x floor, target <= 1.6: missed by 25.0%"),
        (Target(0.5, "theirs"), "0.50 x theirs, target <= 0.5: met"),
        (Target(0.4, "theirs"), "0.50 x theirs, target <= 0.4: missed by 25.0%"),
        (Target(0.6, "theirs", at_least=True), "0.50 x theirs, target >= 0.6: missed by 20.0%"),
        (Target(0.5, "theirs", at_least=True), "0.50 x theirs, target >= 0.5: met"),
        (Target(1, "nobody's"), "nobody's was not measured"),
    ],
    ids=str,
)
def test_the_verdict(compare, target, verdict):
    rows = compare({"ours": taking(2.0), "theirs": taking(4.0)}, {"ours": [target]})
    assert rows["ours"]["verdict"] == verdict
    assert rows["ours"]["ratio"] == 0.5 and rows["ours"]["ratio_to"] == "theirs"
    assert rows["theirs"]["verdict"] == "4.00 x floor"


def test_memory_may_take_longer_than_what_is_compared_with(compare):
    rows = compare({"ours": taking(2.0), "theirs": taking(0.5)}, {"ours": [Target(3, "theirs", memory=True)]})
    assert rows["ours"]["verdict"] == "2.00 x theirs, target <= 3: met"


@pytest.mark.parametrize("error", [0.2, float("nan")])
def test_what_is_wrong_is_not_timed(compare, error):
    rows = compare({"ours": taking(2.0, error=lambda: error, tolerance=0.1), "theirs": taking(4.0)})
    assert rows["ours"]["failed"] == "its error is over 1e-01" and "p50_ms" not in rows["ours"]
    assert rows["theirs"]["p50_ms"] == 4.0


def test_what_breaks_off_leaves_the_others(compare):
    def broken():
        raise RuntimeError("out of memory\nand more")

    rows = compare({"ours": Trial(lambda: 1.0, error=broken), "theirs": taking(4.0)})
    assert rows["ours"]["failed"] == "RuntimeError: out of memory"
    assert rows["theirs"]["p50_ms"] == 4.0


def test_a_dry_run_makes_nothing(compare):
    rows = compare({}, dry=True)
    assert rows["ours"] == {"variant": "ours", "flop": 0, "bytes": 43 * 10**8, "floor_ms": 1.0}
