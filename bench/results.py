"""The one CSV of all measurements, and what each row says of where it was measured."""

import csv
import datetime
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

FILE = Path(__file__).parent / "results" / "results.csv"
# fmt: off
COLUMNS = [
    "case", "variant", "shape", "dtype", "rank", "rho", "out_of_span", "threads", "p20_ms", "p50_ms", "p80_ms",
    "ratio", "ratio_to", "flop", "bytes", "floor_ms", "extra_mib", "allowed_mib",
    "spectrum", "residual", "orthogonality", "sigma_error", "sigma_error_of_torch", "spectral_error", "energy",
    "device", "driver", "torch", "triton", "date", "commit",
]
# fmt: on


def conditions() -> dict[str, str]:
    """Device, driver, versions, date and commit of this run."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = ""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if cuda else "",
        "torch": torch.__version__,
        "triton": triton,
        "date": datetime.date.today().isoformat(),
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
    }


def replace_case(case: str, rows: Iterable[dict], file: Path = FILE) -> None:
    """Writes a case's rows in place of those that the same device had."""
    where = conditions()
    kept = [row for row in read(file) if (row["case"], row["device"]) != (case, where["device"])]
    rows = [{"case": case, **row, **where} for row in rows]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept + rows)


def read(file: Path = FILE) -> list[dict[str, str]]:
    """All rows, as written."""
    if not file.is_file():
        return []
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip().split("\n")[0]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(names)} cores"
