"""The folder of a sequential run: what was measured, under which configuration, and the printed report."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gsr_kernels
from gsr_kernels.continual.experiment import Results
from gsr_kernels.continual.model import ByteDecoder
from gsr_kernels.continual.report import SCORE
from gsr_kernels.continual.settings import Settings
from gsr_kernels.continual.tasks import TEST_ROWS, Pool, general_pool
from gsr_kernels.continual.train import MAX_NORM, WARM_UP, adamw
from gsr_kernels.files import replacing


def configuration(
    settings: Settings, pools: Sequence[Pool], described: Mapping[str, str], arguments: Sequence[str]
) -> dict[str, Any]:
    """All that decides the numbers, for config.json; ``described`` is of ``describe_methods``."""
    optimizer = adamw(ByteDecoder(settings.model), settings.lr)
    return {
        "arguments": list(arguments),
        "settings": dataclasses.asdict(settings),
        "methods": dict(described),
        "optimizer": {"name": type(optimizer).__name__, **optimizer.defaults},
        "training": {"warm_up": WARM_UP, "max_norm": MAX_NORM, "test_rows": TEST_ROWS},
        "general": _rows(general_pool()),
        "tasks": {pool.name: _rows(pool) for pool in pools},
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


def write(folder: Path, config: Mapping[str, Any], results: Results, text: str) -> None:
    """Writes results.json, config.json and table.txt (``text``), in place of those of fewer seeds."""
    measured = {
        "score": SCORE,
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


def _rows(pool: Pool) -> dict[str, Any]:
    return {"about": pool.about, "rows": len(pool.rows), "sha256": pool.digest()}


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=1, allow_nan=False) + "\n"
