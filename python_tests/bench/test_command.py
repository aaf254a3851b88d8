import json
import re
import sys

import pytest
import torch

from bench import runner
from bench.cases import FIXED, OF_A_MODEL, SECONDS
from bench.results import LABELS, Table
from bench.timing import H200
from gsr_kernels.__main__ import main
from gsr_kernels.cli import bench as command

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
}


@pytest.fixture
def tiny(tmp_path):
    """A model that takes no time."""
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(CONFIG))
    return str(path)


@pytest.fixture
def bench(tmp_path, capsys, monkeypatch):
    """Runs the command; its exit status, what it printed and the rows that it wrote."""
    out = tmp_path / "rows.csv"
    # to measure what this machine reaches takes longer than all the rest
    monkeypatch.setattr(runner, "measured", lambda device: H200)

    def bench(*arguments):
        code = main(["bench", "--out", str(out), "--seconds", "0", *arguments])
        printed = capsys.readouterr()
        ceilings, rows = [], []
        for row in Table(out).read():
            (ceilings if row["case"] == "ceilings" else rows).append(row)
        assert {row["variant"] for row in ceilings} == ({"16-bit", "fp32", "memory"} if rows else set())
        return code, printed.out + printed.err, rows

    return bench


@pytest.mark.parametrize("case", SECONDS)
def test_every_case_says_what_it_would_cost(bench, case):
    code, printed, rows = bench("--dry-run", "--case", case, "--rank", "full", "256", "--gradient", "fp32", "bf16")
    lines = printed.splitlines()[3:]
    assert code == 0 and not rows and lines
    assert all(
        re.search(r": [\d.e+-]+ TFLOP, [\d.e+-]+ GB \| (bases [\d.]+ MiB .*)?floor [\d.e+-]+ ms$", line)
        for line in lines
    ), printed


@pytest.mark.parametrize("rank", ["full", "8"])
@pytest.mark.parametrize("case", OF_A_MODEL)
def test_every_case_runs_small(bench, tiny, case, rank):
    code, printed, rows = bench("--case", case, "--model", tiny, "--rank", rank)
    assert code == 0, printed
    measured = [row for row in rows if not row["failed"].startswith("not measured")]
    assert measured and all(row["device"] and row["commit"] and not row["failed"] for row in rows if row in measured)
    assert all(row["p50_ms"] or row["extra_mib"] for row in measured)


def test_bandwidth_is_in_gigabytes_as_that_of_estimate(bench, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    code, printed, _ = bench("--dry-run", "--case", "transform", "--model", str(tmp_path), "--bandwidth", "900")
    assert code == 0 and "and 900 GB/s" in printed, printed


def test_rows_take_the_place_of_those_before(bench, tiny):
    _, _, first = bench("--case", "transform", "--model", tiny)
    _, _, again = bench("--case", "transform", "--model", tiny)
    _, _, other = bench("--case", "transform", "--model", tiny, "--rank", "8")
    same = [[[row[label] for label in LABELS] for row in rows] for rows in (first, again)]
    assert same[0] == same[1] and len(other) == 2 * len(first)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
@pytest.mark.parametrize("case", [case for case in SECONDS if case.endswith("_gpu")])
def test_what_cannot_be_measured_here_is_said(bench, case, capsys):
    with pytest.raises(SystemExit, match="1 of the rows above failed"):
        bench("--case", case)
    assert f"{case}: FAILED: broken off, RuntimeError: it needs a CUDA device" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "gpt-9"], "--model must be one of falcon3-1b"),
        (["--model", "nowhere/config.json"], "there is no file nowhere/config.json"),
        (["--rank", "0"], "--rank must be full or a number"),
        (["--rank", "half"], "--rank must be full or a number"),
        (["--layers", "0"], "--layers must be at least 1"),
        (["--tflops", "-1"], "--tflops must be positive"),
        (["--bandwidth", "0"], "--bandwidth must be positive"),
        (["--seconds", "-1"], "--seconds must not be negative"),
        (["--out", "nowhere/rows.csv"], "--out: no folder nowhere"),
    ],
    ids=str,
)
def test_bad_arguments(bench, arguments, message):
    code, printed, rows = bench("--case", "transform", *arguments)
    assert code == 2 and message in printed and not rows


def test_a_configuration_of_no_model(bench, tmp_path):
    (tmp_path / "empty.json").write_text("{}")
    code, printed, _ = bench("--case", "transform", "--model", str(tmp_path / "empty.json"))
    assert code == 2 and "names no model_type" in printed


def test_every_case_has_its_seconds():
    import pkgutil

    import bench.cases

    assert {module.name for module in pkgutil.iter_modules(bench.cases.__path__)} == set(OF_A_MODEL) | set(FIXED)


def test_an_installed_package_says_where_the_cases_are(bench, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "FOLDER", tmp_path / "bench")
    with pytest.raises(SystemExit):
        bench("--dry-run")
    assert "the cases are in the folder bench/ of the project's sources" in capsys.readouterr().err


def test_a_checkout_has_one_name_for_it(monkeypatch):
    assert command.runner() is runner
    monkeypatch.setattr("sys.path", [])
    assert command.runner() is runner
    assert str(command.FOLDER.parent) in sys.path
