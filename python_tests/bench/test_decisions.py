"""What a GPU measured, as a table that the package reads: on rows that are made up, of an architecture that is not."""

from itertools import chain

import pytest
import torch

from bench.gpu.decisions import COLUMNS, decide
from bench.results import Table
from gsr_kernels.backends import dispatch
from gsr_kernels.backends.dispatch import KEY, MEASURED, backend_for, measured

ARCHITECTURE = 0
CPU = torch.device("cpu")
ASKED = "asked for"


def timed(stage, torch_ms, triton_ms, shape="4 x 48x32", rank="full", mode="drop"):
    row = {"case": "shapes", "failed": "", "dtype": "fp32 x fp16", "shape": shape, "rank": rank, "out_of_span": mode}
    row |= {"device": "none", "date": "", "commit": ""}
    return [
        {**row, "variant": f"{stage} torch", "p50_ms": str(torch_ms)},
        {**row, "variant": f"{stage} triton", "p50_ms": str(triton_ms)},
    ]


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Makes the package read the decisions on such rows."""

    def table(*rows):
        file = tmp_path / "decisions.csv"
        Table(file, COLUMNS, KEY).add(decide(chain(*rows), ARCHITECTURE))
        found = measured(file)
        monkeypatch.setattr(dispatch, "measured", lambda: found)
        monkeypatch.setattr(dispatch, "has_kernels", lambda device: True)

    return table


def decided(stage, gradient=torch.float32, mode="drop", dims=(48, 32, 32)):
    return backend_for(stage, CPU, gradient, torch.float16, dims, mode)[0]


@pytest.mark.parametrize("stage", ["step", "update"])
@pytest.mark.parametrize(("torch_ms", "kept"), [(1.0, False), (1.96, True), (3.0, True)])
def test_a_shape_is_taken_by_who_was_faster_by_more_than_noise(table, torch_ms, kept, stage):
    table(timed(stage, torch_ms, 2.0))
    assert decided(stage) == ("triton" if kept else "torch")
    others = [decided({"step": "update", "update": "step"}[stage]), decided(stage, dims=(32, 48, 32))]
    assert {*others, decided(stage, torch.bfloat16), decided(stage, mode="keep")} == {"triton"}
    # who asks for the kernels gets them
    assert backend_for(stage, CPU, torch.float32, torch.float16, (48, 32, 32), "drop", "triton") == ("triton", ASKED)


def test_an_operator_is_decided_by_its_own_rows(table):
    table(timed("project", 1.0, 2.0, "48x32", "8", "keep"), timed("recompose", 2.0, 1.0, "48x32", "8", "keep"))
    half = torch.float16
    faster = "measured to be the faster one on such a GPU"
    assert backend_for("project", CPU, half, half, (48, 32, 8)) == ("torch", faster)
    assert backend_for("recompose", CPU, half, half, (48, 32, 8)) == ("triton", faster)
    assert backend_for("project", CPU, half, half, (48, 32, 32)) == ("triton", "on a CUDA device")
    assert backend_for("project", CPU, torch.float32, half, (48, 32, 8)) == ("triton", "on a CUDA device")


def test_what_failed_or_ran_alone_decides_nothing():
    rows = timed("step", 1.0, 2.0)
    assert not list(decide(rows[:1], ARCHITECTURE))
    assert not list(decide([rows[0], {**rows[1], "failed": "its error is over 1"}], ARCHITECTURE))


def test_the_committed_table_holds_only_what_a_gpu_measured():
    rows = Table(MEASURED, COLUMNS, KEY).read()
    assert all(int(row["architecture"]) >= 80 and row["device"] and row["commit"] for row in rows)
    assert len(measured(MEASURED)) == len(rows)
