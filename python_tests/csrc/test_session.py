"""The session that a GPU needs, as far as it goes without one."""

import io
import subprocess
import time
from pathlib import Path

import pytest
import torch

from bench.cases import small_svd_gpu
from bench.gpu import __main__ as gpu
from bench.gpu import plan, sanitize, session
from bench.models import model
from bench.run import Run, Setting
from bench.timing import H200
from gsr_kernels import ops
from gsr_kernels.backends import cuda

EXTENSION = ("build", "small_svd_tests", "csrc_memcheck", "csrc_racecheck", "csrc_synccheck")
CANDIDATES = ("build_candidates", "parity")


def test_a_dry_run_says_what_would_be_run(capsys):
    assert gpu.main([*EXTENSION, *CANDIDATES, "small_svd", "--dry-run"]) == 0
    said = capsys.readouterr().out
    expected = ("setup.py build_ext", "test_small_svd.py", "small_svd_gpu", "bench.gpu candidates", "sanitize --csrc")
    assert all(part in said for part in expected)
    assert [plan.ALL[name].sanitizer for name in EXTENSION[2:]] == ["memcheck", "racecheck", "synccheck"]


@pytest.mark.parametrize("parts", [EXTENSION, CANDIDATES], ids=["extension", "candidates"])
def test_the_two_sessions_take_ten_minutes_each(parts):
    assert sum(plan.ALL[name].seconds for name in parts) <= 570


def test_parts_that_fail_or_are_left_out_are_named_and_rows_are_brought_back(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(session, "RESULTS", tmp_path)
    (tmp_path / "results.csv").write_text("case\n")
    asked, out = [], ["--out", str(tmp_path / "out")]

    def ended(command, environment, seconds, log):
        asked.append((command, environment))
        return int("test_candidates.py" in command[-1])

    monkeypatch.setattr(session, "ended", ended)
    assert session.candidates.here() == "90a"
    assert gpu.main(["build", *out]) == 0
    _, environment = asked.pop()
    assert environment["TORCH_CUDA_ARCH_LIST"] == "9.0a" and environment["GSR_KERNELS_CUDA"] == "1"
    assert gpu.main(["parity", "small_svd_tests", *out]) == 1
    said = capsys.readouterr().out
    assert "parity: failed with 1" in said and "small_svd_tests: done" in said
    assert len(asked) == 2 and (tmp_path / "out" / "results.csv").is_file()
    assert gpu.main(["small_svd_tests", "--seconds", "0", *out]) == 1
    assert "small_svd_tests: left out" in capsys.readouterr().out


def test_a_part_that_takes_too_long_ends_with_all_that_it_started(tmp_path):
    told = tmp_path / "told"
    with pytest.raises(subprocess.TimeoutExpired):
        session.ended(["sh", "-c", f"sleep 60 & echo $! > {told}; wait"], {}, 2, io.StringIO())
    # gone, or a zombie that nobody has waited for
    status = Path(f"/proc/{told.read_text().strip()}/stat")
    for _ in range(50):
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("it runs on")


@pytest.mark.parametrize("arguments, message", [(["all"], "no part all"), ([], "no CUDA GPU")])
def test_what_cannot_be_run_is_said(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(arguments)
    assert message in capsys.readouterr().err


def test_the_problems_load_the_operators_first(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    cuda.refusal.cache_clear()
    monkeypatch.setattr(cuda, "obstacle", lambda: "nothing was built")
    with pytest.raises(RuntimeError, match="nothing was built: the part build comes first"):
        sanitize.extension()
    cuda.refusal.cache_clear()


def test_the_case_predicts():
    rows = list(small_svd_gpu.rows(Run(Setting(model("small")), H200, dry=True)))
    floors = {row["shape"]: row["floor_ms"] for row in rows if row["variant"] == "small_svd"}
    assert list(floors) == ["126 x 64x64", "126 x 128x128", "126 x 256x256"] and floors["126 x 256x256"] > 1


def test_the_case_proves_what_it_times(monkeypatch):
    plain = ops.implementation("small_svd", "torch")
    monkeypatch.setattr(small_svd_gpu, "COUNT", 3)
    monkeypatch.setattr(small_svd_gpu, "implementation", lambda name, backend, device: plain)
    trial = small_svd_gpu.makers(torch.device("cpu"), 16)["small_svd"]()
    trial.run()
    assert trial.error() <= trial.tolerance == 5e-6
    U, S, Vh, sweeps = plain(torch.randn(2, 8, 8))
    sweeps[1] = 0
    assert not small_svd_gpu._defect(U, S, Vh, sweeps) <= 5e-6
    assert small_svd_gpu._defect(2 * U, S, Vh, sweeps.clamp(min=1)) > 1
