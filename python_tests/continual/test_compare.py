"""The comparison of runs, from folders with results made by hand."""

import json

import pytest

from gsr_kernels.__main__ import main
from gsr_kernels.continual.folder import write
from gsr_kernels.continual.metrics import ResultMatrix, Results


def save_run(folder, methods, tasks=("a", "b"), seeds=(1, 2), rows="one"):
    """A run whose methods forget so much, one number a seed."""
    matrices = {}
    for title, losses in methods.items():
        for loss in losses:
            matrix = ResultMatrix(tasks)
            matrix.record(tasks[0], {tasks[0]: 90.0, tasks[1]: 0.0})
            matrix.record(tasks[1], {tasks[0]: 90.0 - loss, tasks[1]: 80.0})
            matrices.setdefault(title, []).append(matrix)
    config = {
        "settings": {"first_seed": 0, "seeds": 2},
        "tasks": {task: {"sha256": f"{task} {rows}"} for task in tasks},
    }
    results = Results("percent", matrices, rows={"a": 1, "b": 3}, seeds=seeds)
    folder.mkdir(parents=True)
    write(folder, config, results, "")
    return str(folder)


def test_runs_are_compared_seed_by_seed_and_over_orders(tmp_path, capsys):
    forth = save_run(tmp_path / "forth", {"SeqFT": [10.0, 20.0], "GSR": [5.0, 15.0]})
    # the seeds in another order are the same seeds
    more = save_run(tmp_path / "more", {"PSP": [18.0, 8.0]}, seeds=(2, 1))
    back = save_run(tmp_path / "back", {"SeqFT": [30.0, 40.0], "GSR": [24.0, 36.0]}, tasks=("b", "a"))
    other = save_run(tmp_path / "other", {"SeqFT": [0.0, 0.0]}, rows="two")
    assert main(["continual", "compare", forth, more, back, other, "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    found = json.loads((tmp_path / "out/compare.json").read_text())
    assert found["baseline"] == "forth: SeqFT"
    gain = found["gains"]["more: PSP"]
    assert gain["F.Ra"] == {"mean": 2.0, "interval": [2.0, 2.0], "verdict": "better"}
    assert gain["AP"]["mean"] == 1.0 and gain["Acc"]["mean"] == 0.5
    over = found["gains"]["2 orders: GSR"]
    assert over["against"] == "2 orders: SeqFT" and over["F.Ra"]["mean"] == 5.0
    assert over["F.Ra"]["interval"] == pytest.approx((5 - 1.299228, 5 + 1.299228), abs=1e-5)
    assert "With no seed, order and rows in common with forth: SeqFT: back: SeqFT, back: GSR, other: SeqFT." in told
    assert told.startswith((tmp_path / "out/compare.txt").read_text())
    assert (tmp_path / "out/compare.png").read_bytes().startswith(b"\x89PNG")
    assert main(["continual", "compare", forth, "--baseline", "forth: GSR"]) == 0
    assert "forth: SeqFT against forth: GSR: it lost 5.0 points more (F.Ra" in capsys.readouterr().out


def test_what_is_no_run_is_refused(tmp_path, capsys):
    run = save_run(tmp_path / "run", {"SeqFT": [10.0, 20.0]})
    for runs, message in (
        ([str(tmp_path)], f"RUN {tmp_path} holds no results of a run"),
        ([run, run], f"RUN {run} is given twice"),
        ([run, "--baseline", "GSR"], "--baseline 'GSR' is none of run: SeqFT"),
        ([run, "--baseline", ""], "--baseline '' is none of run: SeqFT"),
    ):
        assert main(["continual", "compare", *runs]) == 2
        assert message in capsys.readouterr().err
