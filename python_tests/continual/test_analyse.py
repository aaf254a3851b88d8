"""The analyses of weights against values by hand, and from a run's folder."""

import csv
import json

import pytest
import torch

from gsr_kernels.__main__ import main
from gsr_kernels.continual import analyse
from python_tests.continual.tiny import save_model, save_tasks

FIRST = {"layers.0.q": torch.tensor([[3.0, 0.0], [0.0, 4.0]]), "layers.1.q": torch.tensor([[1.0, 0.0], [0.0, 0.0]])}
SECOND = {"layers.0.q": torch.tensor([[-5.0, 0.0], [0.0, 0.5]]), "layers.1.q": torch.tensor([[2.0, 2.0], [0.0, 0.0]])}
UPDATES = {"a": FIRST, "b": SECOND}


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_pictures_hold_the_values_that_their_names_say(tmp_path):
    for draw in (analyse.shifts, analyse.bottom_share, analyse.spectra, analyse.sign_conflicts, analyse.angles):
        figure, axis = draw(UPDATES, tmp_path / f"{draw.__name__}.png")
        assert axis in figure.axes and (tmp_path / f"{draw.__name__}.png").read_bytes().startswith(b"\x89PNG")
    [angle] = rows(tmp_path / "angles.csv")
    # <a, b> = -15 + 2 + 2, |a|² = 26, |b|² = 33.25
    cosine = torch.tensor(-11 / (26 * 33.25) ** 0.5, dtype=torch.float64)
    assert float(angle["degrees"]) == pytest.approx(torch.rad2deg(torch.acos(cosine)).item())
    conflicts = {row["layer"]: float(row["opposite"]) for row in rows(tmp_path / "sign_conflicts.csv")}
    assert conflicts == {"layers.0": 0.5, "layers.1": 0.0}
    held = {round(float(row["smallest"]), 2): float(row["share"]) for row in rows(tmp_path / "bottom_share.csv")[:101]}
    # of eight entries 0, 0, 0, 0, 0, 1, 3, 4
    assert (held[0.5], held[0.75], held[0.88], held[1.0]) == pytest.approx((0, 1 / 26, 10 / 26, 1))
    sigma = [float(row["sigma"]) for row in rows(tmp_path / "spectra.csv") if row["task"] == "a"]
    assert sigma == pytest.approx([4, 3, 1])
    for draw in (analyse.sign_conflicts, analyse.angles):
        with pytest.raises(ValueError, match="two tasks are wanted"):
            draw({"a": FIRST})


@pytest.mark.usefixtures("blank_pictures")
def test_a_run_with_its_models_is_analysed_and_one_without_is_told(tmp_path, capsys):
    model, data = save_model("causal", tmp_path / "model"), save_tasks(tmp_path / "data", ("first", "second"), 16)
    flags = ["--model", model, "--data", data, "--steps", "3", "--batch", "8", "--lr", "1e-2"]
    out = tmp_path / "out"
    methods = ["--method", "gsr,o-lora", "--adapter-rank", "2", "--adapter-lr", "1e-1"]
    assert main(["continual", *flags, *methods, "--keep-models", "--out", str(out)]) == 0
    assert main(["continual", "analyse", str(out), "--ranks", "0,2,32"]) == 0
    matrices = json.loads((out / "results.json").read_text())["matrices"]
    for name, title in (("gsr", "GSR"), ("o-lora", "O-LoRA")):
        folder = out / "analysis/seed-0" / name
        swept = {(row["k"], row["task"]): float(row["score"]) for row in rows(folder / "rank_sweep.csv")}
        # all directions are the model itself
        assert [swept["32", task] for task in ("first", "second")] == matrices[title][0]["cells"][-1]
        directions = {row["index"] for row in rows(folder / "spectra.csv") if row["task"] == "first"}
        assert len(directions) == (2 if name == "o-lora" else 32)
    assert main(["continual", "analyse", str(out), "--weights", "nothing"]) == 2
    assert "--weights 'nothing' is found in no name of" in capsys.readouterr().err
    assert main(["continual", "analyse", str(out), "--weights", "("]) == 2
    assert "--weights: '(' is no regular expression" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["continual", "analyse", str(out), "--ranks", "few"])
    assert "ranks must be at least 0, with commas between, or none, got 'few'" in capsys.readouterr().err
    assert main(["continual", *flags, "--method", "seqft", "--out", str(tmp_path / "lean")]) == 0
    assert main(["continual", "analyse", str(tmp_path / "lean")]) == 2
    assert "seqft after first was not kept: begin a run with --keep-models" in capsys.readouterr().err
