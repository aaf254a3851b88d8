"""The case of the adapters on small sizes: what it proves before it measures."""

from functools import partial

import pytest

from bench.cases import adapters_gpu
from bench.models import model
from bench.run import Run, Setting
from bench.timing import H200

STABILITY = partial(adapters_gpu.stability, tasks=3)


@pytest.mark.parametrize("part", [STABILITY, adapters_gpu.merging, adapters_gpu.retraction])
def test_every_part_is_right_before_it_is_timed(part):
    rows = list(part(Run(Setting(model("falcon3-1b")), H200, seconds=0.01, least=1), 2, 48))
    assert len(rows) == (3 if part is STABILITY else 2) and not any("failed" in row for row in rows)
    assert all(row["p50_ms"] > 0 for row in rows) and rows[0]["rel_error"] < 1e-5


def test_the_loss_may_hold_a_hundredth_of_the_dense_form(monkeypatch):
    monkeypatch.setattr(adapters_gpu, "MODULES", 2)
    monkeypatch.setattr(adapters_gpu, "SIDE", 48)
    rows = list(adapters_gpu.rows(Run(Setting(model("falcon3-1b")), H200, seconds=0, least=1)))
    assert rows[0]["allowed_mib"] == pytest.approx(rows[1]["extra_mib"] / 100, abs=0.05) and len(rows) == 7
