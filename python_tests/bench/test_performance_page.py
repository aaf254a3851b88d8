"""The targets' rows are rows that the cases yield."""

from importlib import import_module

import pytest

from bench.docs.performance import TARGETS, gpu_table, target_table
from bench.models import model
from bench.results import COLUMNS
from bench.run import Run, Setting
from bench.timing import H200


@pytest.mark.parametrize(
    ("what", "target", "predicted", "case", "variant", "labels"), TARGETS, ids=[one[0] for one in TARGETS]
)
def test_a_case_yields_the_row_of_each_target(what, target, predicted, case, variant, labels):

    rank = None if labels["rank"] == "full" else int(labels["rank"])
    gradient, precision = labels["dtype"].split(" x ")
    run = Run(Setting(model("falcon3-1b"), rank, precision, gradient), H200, dry=True)
    rows = list(import_module(f"bench.cases.{case}").rows(run))
    # what is launched is no row of a dry run
    named = [row for row in rows if row["variant"] == variant.removesuffix(", launched")]
    assert any(all(str(row[name]) == value for name, value in labels.items()) for row in named)


def test_the_table_tells_what_was_measured_on_a_gpu_alone():
    assert target_table([]).count("not yet") == len(TARGETS)
    row = {**dict.fromkeys(COLUMNS, ""), "case": "memory", "variant": "GSRAdamW", "model": "falcon3-1b", "rank": "full"}
    row |= {"dtype": "fp32 x fp16", "verdict": "beyond the bases: met", "device": "no device"}
    assert target_table([row]).count("not yet") == len(TARGETS)
    told = target_table([{**row, "driver": "1.0"}])
    assert told.count("not yet") == len(TARGETS) - 1 and "beyond the bases: met" in told and "no device" in told


def test_the_table_of_gpus_tells_what_ran_where():
    assert gpu_table([{**dict.fromkeys(COLUMNS, ""), "case": "memory"}]) == "None yet."
    row = {**dict.fromkeys(COLUMNS, ""), "device": "H200", "driver": "1.0", "commit": "abc"}
    tested = {name: value for name, value in row.items() if name != "case"}
    last = gpu_table([{**row, "case": "memory"}, {**row, "case": "memory"}, tested]).splitlines()[-1]
    assert last == "| H200 | 1.0 |  |  |  | abc | memory, tests |"
