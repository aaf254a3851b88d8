"""The folder of a sequential run: its lock, its files, and the commit that it was made by."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import gsr_kernels
from gsr_kernels.continual.figures import summary
from gsr_kernels.continual.metrics import ResultMatrix, Results
from gsr_kernels.io.atomic import replacing

CONFIG = "config.json"
# the file that a run holds
LOCK = ".lock"
# results that are matrices
MATRICES = ("matrices", "validation")


def check_new(folder: Path, way_out: str) -> None:
    """Raise FileExistsError where ``--out`` holds something."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"--out {folder} exists and is no empty folder: {way_out}")


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the folder for one run; BlockingIOError where another has it, OSError where it takes no lock."""
    # on network file systems a lock wants a file that can be written
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise BlockingIOError(
                f"--out {folder}: another run writes into it ({file.read().strip() or 'of an unknown process'}): wait "
                f"for its end, or give another. If that process is gone, and a network file system holds its lock, "
                f"remove {folder / LOCK}"
            ) from error
        except OSError as error:
            raise OSError(
                f"--out {folder}: its file system takes no locks ({error.strerror}): give a folder on another"
            ) from error
        file.truncate(0)
        print(f"process {os.getpid()} on {platform.node()}", file=file, flush=True)
        yield


def write(folder: Path, config: Mapping[str, Any], results: Results, text: str) -> None:
    """Write results.json, config.json and table.txt (``text``), in place of those of fewer seeds."""
    measured: dict[str, Any] = {"score": results.score, "spectra": results.spectra, "sweeps": results.sweeps}
    for name in MATRICES:
        measured[name] = {title: [each.to_dict() for each in of] for title, of in getattr(results, name).items()}
    measured |= {"diverged": results.diverged, "rows": results.rows, "seeds": results.seeds}
    measured |= {"scratch": results.scratch, **summary(results)}
    write_json(folder / "results.json", measured, indent=1)
    write_json(folder / CONFIG, {**config, "seconds": round(results.seconds, 1)}, indent=1)
    write_text(folder / "table.txt", text)


def read_results(folder: Path) -> tuple[Results, dict[str, Any]]:
    """Return what a run has measured, and its configuration; ValueError for a folder of no run."""
    try:
        found, config = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("results.json", CONFIG))
        for name in MATRICES:
            matrices = found.get(name, {}).items()
            found[name] = {title: [ResultMatrix.from_dict(each) for each in of] for title, of in matrices}
        known = {each.name for each in fields(Results)}
        return Results(**{name: value for name, value in found.items() if name in known}), config
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"RUN {folder} holds no results of a run: {error}") from error


def write_json(file: Path, data: Mapping[str, Any], indent: int | None = None) -> None:
    """Write a JSON file, whole or not at all, and its folder."""
    write_text(file, json.dumps(data, indent=indent, allow_nan=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a text file, whole or not at all, and its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as path:
        path.write_text(text, encoding="utf-8")


def commit() -> str | None:
    """Return the commit of this package's checkout, with "-dirty" after changes; None where there is none."""
    root = Path(gsr_kernels.__file__).parent.parent
    # a package installed into some other project's checkout has no commit of its own
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
