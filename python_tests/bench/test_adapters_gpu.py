"""The case of the adapters on small sizes: what it proves before it measures, and that a GPU is asked for."""

import pytest

from bench.cases import adapters_gpu
from bench.models import model
from bench.run import Run, Setting
from bench.timing import H200


@pytest.mark.parametrize("part", [adapters_gpu.stability, adapters_gpu.merging, adapters_gpu.retraction])
def test_every_part_is_right_before_it_is_timed(part):
    rows = list(part(Run(Setting(model("falcon3-1b")), H200, seconds=0.01, least=1), 2, 48))
    assert len(rows) == 2 and not any("failed" in row for row in rows)
    assert all(row["p50_ms"] > 0 for row in rows) and rows[0]["rel_error"] < 1e-5


def test_it_needs_a_gpu():
    with pytest.raises(RuntimeError, match="needs a CUDA device"):
        list(adapters_gpu.rows(Run(Setting(model("falcon3-1b")), H200)))
