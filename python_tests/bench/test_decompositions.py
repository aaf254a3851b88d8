"""The cases of decompositions at sizes that take no time: their accuracy targets on a CPU, and that all parts run."""

import pytest
import torch

from bench.cases import model_svd_gpu, svd_accuracy, svd_cpu, svd_gpu
from bench.docs.pages import filled
from bench.docs.svd import PAGE, accuracy, arrangements, blocks, randomized
from bench.models import Model
from bench.results import read
from bench.run import Run, Setting
from bench.timing import H200
from gsr_kernels.linalg.side_by_side import ARRANGEMENTS

CPU = torch.device("cpu")


@pytest.fixture
def run():
    torch.manual_seed(0)
    return Run(Setting(Model("none", {}, {})), H200, CPU, seconds=0, least=1)


@pytest.mark.parametrize("shape", [(128, 128), (320, 96), (96, 320)], ids=str)
@pytest.mark.parametrize("kind", ["log", "linear"])
@pytest.mark.parametrize("condition", svd_accuracy.CONDITIONS)
def test_exact_decompositions_meet_their_targets(shape, kind, condition):
    torch.manual_seed(0)
    found = {row["variant"]: row["verdict"] for row in svd_accuracy.exact(CPU, shape, kind, condition)}
    assert found.keys() == {"svd gram", "svd gesdd", "svd polar"}
    for verdict in found.values():
        # of a linear spectrum one σ decides, and LAPACK may be lucky with it
        judged = verdict if kind == "log" else verdict.partition("; sigma")[0]
        assert judged.count("met") == (3 if kind == "log" else 2) and "missed" not in judged


def test_the_small_values_of_a_graded_diagonal_are_right_on_a_cpu():
    found = {row["variant"]: row for row in svd_accuracy.exact(CPU, svd_accuracy.GRADED[0], "diagonal", 1e12)}
    assert found["svd gram"]["sigma_error"] <= 1e-5 < 0.1 < found["svd gesdd"]["sigma_error"]


@pytest.mark.parametrize("shape", [(160, 160), (320, 160)], ids=str)
@pytest.mark.parametrize("kind", ["flat", "decaying"])
@pytest.mark.parametrize("rank", [40, 10])
def test_randomized_ones_meet_theirs(shape, kind, rank):
    pytest.importorskip("sklearn")
    torch.manual_seed(0)
    ours, theirs = svd_accuracy.randomized(CPU, shape, kind, rank)
    assert ours["verdict"].count("met") == (3 if kind == "decaying" else 2) and "missed" not in ours["verdict"], ours
    assert theirs["variant"] == "sklearn randomized_svd" and theirs["energy"] > 0.9


def test_times_on_a_cpu(run, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(svd_cpu, "SIDES", {"gram": 64, "gesdd": 64, "polar": 64, "float64": 64})
    monkeypatch.setattr(svd_cpu, "EXACT", [(2, 16, 40)])
    monkeypatch.setattr(svd_cpu, "HEADS", (3, 8, 6))
    monkeypatch.setattr(svd_cpu, "RANDOMIZED", [(600, 520)])
    rows = list(svd_cpu.rows(run))
    variants = ["svd gram", "svd gesdd", "svd polar", "svd float64", "torch.linalg.svd"]
    assert [row["variant"] for row in rows[:5]] == variants
    assert len(rows) == 5 + 2 + len(ARRANGEMENTS) + 4 and all(row["p50_ms"] > 0 and row["ratio"] > 0 for row in rows)


def test_the_parts_for_a_gpu_run(run):
    """On a CPU, with the drivers that it has: everything but the device."""
    pytest.importorskip("sklearn")
    found = [row["variant"] for row in svd_gpu.drivers(run, (32, 32), ["polar", "gesdd"])]
    assert found == ["svd polar", "svd gesdd", "torch.linalg.svd"]
    ours, other = svd_gpu.tall(run, (40, 20), 5)
    assert ours["variant"] == "randomized_svd" and other["variant"] == "sklearn randomized_svd"
    assert "error over it" in ours["verdict"] and ours["verdict"].count("target <=") == 2
    ours, other = model_svd_gpu.kept(run, Model("none", {(16, 12): 2, (24, 8): 1}, {}), 10)
    assert ours["variant"] == "load_bases" and "time over reading" in ours["verdict"] and other["p50_ms"] > 0
    for rank in (None, 4):
        rows = list(svd_gpu.arrangements(run, (8, 8, 8), rank))
        assert len(rows) == len(ARRANGEMENTS) and all(row["shape"] == "8x8x8" for row in rows)
        ours, alone, other = model_svd_gpu.whole(CPU, Model("none", {(16, 16): 2, (24, 8): 1}, {}), rank)
        assert ours["shape"] == "3 matrices" and "extrapolated" in other["variant"] and other["p50_ms"] > 0
        assert alone["variant"] == f"{ours['variant']}, one by one"
        assert ours["verdict"].count("target <=") == alone["verdict"].count("target <=") == 2


def test_the_page_says_what_the_rows_say():
    page = PAGE.read_text()
    assert filled(page, blocks(read())) == page
    with pytest.raises(ValueError, match="the marks bench:svd exact once, found 0"):
        filled(page.replace("<!-- bench:svd exact -->", ""), blocks(read()))


def test_arrangements_are_shown_with_what_was_not_measured():
    assert arrangements([]) == "On a GPU nothing of this has been measured yet."
    labels = {"case": "svd_gpu", "device": "a GPU", "threads": "", "torch": "", "date": "", "commit": "", "rank": "8"}
    labels |= {"model": "", "verdict": "", "shape": "8x8x8", "ratio_to": "svd, one by one"}
    rows = [
        {**labels, "variant": f"svd, {way}", "p50_ms": ms} for way, ms in (("one by one", "8"), ("2 at once", "4.04"))
    ]
    model = {
        "case": "model_svd_gpu",
        "model": "some",
        "verdict": "seconds 7, target <= 8: met",
        "shape": "126 matrices",
        "ratio_to": "torch",
    }
    found = arrangements([*rows, {**labels, **model, "variant": "svd", "rank": "full"}])
    assert "| matrices | one by one | 2 at once |" in found and "| 8×8×8 | 8 ms | 4.04 ms |" in found
    assert "- some, svd, rank full: seconds 7" in found and "nothing" not in found


def test_each_device_has_tables_of_its_own():
    rows = [row for row in read() if row["case"] in ("svd_accuracy", "svd_cpu")]
    other = [{**row, "device": "another"} for row in rows]
    for row in other:
        for key in ("variant", "ratio_to"):
            row[key] = row[key].replace("sklearn randomized_svd", "a peer").replace("gesdd", "gesvdj")
    for table in (accuracy, randomized):
        assert table(rows + other) == f"{table(rows)}\n\n{table(other)}"
    assert "a peer" in randomized(other) and "gesvdj · polar" in accuracy(other)
