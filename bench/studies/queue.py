"""The queue of a study: its finished runs, the rates still to try, and the rate that was best."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from gsr_kernels.io.atomic import replacing

TUNING_SEED = 1000
SEEDS = tuple(range(8))


def read(results: Path) -> list[dict]:
    """Return every finished run, in the order of its path."""
    return [json.loads(path.read_text()) for path in sorted(results.glob("*/*.json"))]


def write(path: Path, record: dict) -> None:
    """Write a record whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def tuning(records: list[dict], method: str) -> list[dict]:
    """Return the tuning runs of one method, by rate."""
    found = [r for r in records if r["method"] == method and r["seed"] == TUNING_SEED]
    return sorted(found, key=lambda r: r["lr"])


def rates(records: list[dict], method: str, first: Sequence[float], grid: Sequence[float]) -> list[float]:
    """Return the rates to try: the first ones, then the neighbours of the best so far."""
    tried = tuning(records, method)
    if not set(first) <= {r["lr"] for r in tried}:
        return list(first)
    best = grid.index(_best(tried))
    return sorted({*first, *grid[max(best - 1, 0) : best + 2]})


def choose(records: list[dict], method: str, first: Sequence[float], grid: Sequence[float]) -> float | None:
    """Return the rate with the best mean score on the validation rows, the lower one of a tie.

    None until all rates were tried.
    """
    tried = tuning(records, method)
    return _best(tried) if set(rates(records, method, first, grid)) <= {r["lr"] for r in tried} else None


def _best(tried: list[dict]) -> float:
    return max(tried, key=lambda r: (sum(r["validation"]), -r["lr"]))["lr"]
