"""The CSV of all measurements, and what each row says of where it was measured."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from gsr_kernels.io.atomic import replacing

RESULTS = Path(__file__).parent / "results"
# the variables of the environment that say where rows go instead, and what commit they are of
FOLDER, COMMIT = "BENCH_RESULTS", "BENCH_COMMIT"
FILE = Path(os.environ.get(FOLDER, RESULTS)) / "results.csv"
# the outcomes of python_tests/gpu
TESTS = FILE.with_name("gpu_tests.csv")
# fmt: off
# the labels of a row: measured again, it replaces the one before
LABELS = ["case", "variant", "model", "shape", "dtype", "rank", "rho", "out_of_span", "tokens", "threads", "layout",
          "launch", "spectrum", "device"]
COLUMNS = [
    "case", "variant", "model", "shape", "dtype", "rank", "rho", "out_of_span", "tokens", "threads", "layout", "launch",
    "p20_ms", "p50_ms", "p80_ms", "ratio", "ratio_to", "flop", "bytes", "floor_ms", "extra_mib", "allowed_mib",
    "bases_mib", "formula_mib", "rate",    "verdict", "failed", "rel_error",
    "spectrum", "residual", "orthogonality", "sigma_error", "sigma_error_of_torch", "spectral_error", "energy",
    "device", "driver", "torch", "triton", "date", "commit",
]
# fmt: on


def conditions() -> dict[str, str]:
    """Return device, driver, versions, date and commit of this run."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "driver": _driver() if cuda else "",
        "torch": torch.__version__,
        "triton": _version("triton"),
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
    }


@dataclass(frozen=True)
class Table:
    """A CSV whose rows replace each other where they agree in the columns ``same``."""

    file: Path = FILE
    columns: Sequence[str] = tuple(COLUMNS)
    same: Sequence[str] = tuple(LABELS)

    def read(self) -> list[dict[str, str]]:
        """Return all rows, as written."""
        if not self.file.is_file():
            return []
        with self.file.open(newline="") as opened:
            return list(csv.DictReader(opened))

    def add(self, rows: Iterable[dict]) -> None:
        """Add rows, each instead of the one with the same labels. The file is whole at any time."""
        rows = list(rows)
        new = {self._key(row) for row in rows}
        kept = [row for row in self.read() if self._key(row) not in new]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.file) as partial, partial.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, self.columns, restval="", extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept + rows)

    def _key(self, row: dict) -> tuple[str, ...]:
        return tuple(str(row.get(column) or "") for column in self.same)


def read(file: Path = FILE) -> list[dict[str, str]]:
    """Return all rows of the measurements."""
    return Table(file).read()


def _commit() -> str:
    """Return the commit, marked where files besides the results differ from it.

    Without .git it is what the environment says, or the version.
    """
    if given := os.environ.get(COMMIT):
        return given
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return _version("gsr-kernels")
    git = ["git", "-C", str(root)]
    changed = _output(*git, "status", "--porcelain", "--", ".", ":!bench/results")
    return _output(*git, "rev-parse", "--short", "HEAD") + ("-changed" if changed else "")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _driver() -> str:
    # that there is one tells the rows of a GPU
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "unknown"


def _output(*command: str) -> str:
    if not shutil.which(command[0]):
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip().split("\n")[0]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(names)} cores"
