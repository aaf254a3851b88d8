"""Tables under bench/results that are written row by row; what is measured anew replaces what was."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

RESULTS = Path(__file__).parents[1] / "results"


def forget(file: Path, columns: Sequence[str], **values: str) -> None:
    """Leaves out the rows that have these values."""
    kept = []
    if file.is_file():
        with file.open(newline="") as opened:
            kept = [row for row in csv.DictReader(opened) if any(row.get(key) != one for key, one in values.items())]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as opened:
        writer = _writer(opened, columns)
        writer.writeheader()
        writer.writerows(kept)


def append(file: Path, columns: Sequence[str], rows: Iterable[dict]) -> None:
    """Adds rows under a header that ``forget`` has written."""
    with file.open("a", newline="") as opened:
        _writer(opened, columns).writerows(rows)


def _writer(opened: TextIO, columns: Sequence[str]) -> csv.DictWriter:
    return csv.DictWriter(opened, columns, restval="", extrasaction="ignore", lineterminator="\n")
