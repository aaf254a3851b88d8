import csv

import torch

from bench.studies import best_case


def test_at_rho_zero_gradient_descent_goes_straight():
    moved, forgotten = best_case.learn("gradient descent", 0.0, 0.5, 0)
    assert moved.max() == 0 and (forgotten > 0).all()
    # gradient descent goes straight: 1 − √0.1 of the way, which is a tenth of W, under the flat covariance
    expected = (0.1 * (1 - 0.1**0.5)) ** 2
    assert torch.allclose(forgotten, torch.full_like(forgotten, expected), rtol=1e-3)


def test_the_table_has_a_row_a_cell_from_the_committed_rows():
    with best_case.ROWS.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 2 * 4 * 4 * 2 * 16 and "nan" not in {row["forgotten"] for row in rows}
    moved = {float(row["moved"]) for row in rows if row["rho"] == "0"}
    assert moved == {0.0} and len(best_case.described().splitlines()) == 2 + 2 * 4 * 4
