"""The folder of a sequential run: what was measured, under which configuration, and the printed report."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gsr_kernels
from gsr_kernels.continual.results import Results
from gsr_kernels.io.atomic import replacing

# the file that a run holds
LOCK = ".lock"


def environment() -> dict[str, Any]:
    """Where a run is made, for config.json."""
    return {
        "versions": {
            "gsr_kernels": gsr_kernels.__version__,
            "commit": commit(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "machine": platform.platform(),
        "threads": torch.get_num_threads(),
    }


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """A run's alone, while it lasts.

    Raises BlockingIOError where another run writes into the folder, OSError where no file in it can be locked.
    """
    # on network file systems a lock wants a file that can be written
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise BlockingIOError(
            f"--out {folder}: another run writes into it: wait for its end, or give another"
        ) from error
    except OSError as error:
        os.close(handle)
        raise OSError(
            f"--out {folder}: its file system takes no locks ({error.strerror}): give a folder on another"
        ) from error
    try:
        yield
    finally:
        os.close(handle)


def begin(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes config.json before anything is measured: a run that is cut off is known by it."""
    with replacing(folder / "config.json") as path:
        path.write_text(_json(config), encoding="utf-8")


def write(folder: Path, config: Mapping[str, Any], results: Results, text: str) -> None:
    """Writes results.json, config.json and table.txt (``text``), in place of those of fewer seeds."""
    measured = {
        "score": results.score,
        "matrices": {
            title: [json.loads(matrix.to_json()) for matrix in each] for title, each in results.matrices.items()
        },
        "spectra": results.spectra,
    }
    contents = {
        "results.json": _json(measured),
        "config.json": _json({**config, "seconds": round(results.seconds, 1)}),
        "table.txt": text,
    }
    for name, content in contents.items():
        with replacing(folder / name) as path:
            path.write_text(content, encoding="utf-8")


def commit() -> str | None:
    """The commit of the checkout that this package lies in, with "-dirty" after changes; None where there is none."""
    root = Path(gsr_kernels.__file__).parent.parent
    # a package installed into some other project's checkout has no commit of its own
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=1, allow_nan=False) + "\n"
