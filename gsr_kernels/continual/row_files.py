"""Files of rows: JSON lines, one JSON list, CSV, parquet, and datasets that ``save_to_disk`` wrote."""

from __future__ import annotations

import csv
import gc
import io
import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsr_kernels.continual.examples import Example
from gsr_kernels.messages import need

if TYPE_CHECKING:
    from datasets import Dataset

# bad rows of a file that are told one by one, and of each so many characters
TOLD, LENGTH = 5, 300


def read_rows(file: Path, example: Callable[[Any], Example | None]) -> tuple[Example, ...]:
    """Return the rows of a file; FileNotFoundError, or ValueError with the number of each bad row.

    ``example`` returns None for a row that is to be left out.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    located, parse = READERS[file.suffix]
    return made(located(file), parse, example, str(file))


def made(
    located: Iterable[tuple[str, Any]], parse: Callable[[Any], Any], example: Callable[[Any], Example | None], name: str
) -> tuple[Example, ...]:
    """Make an example of each row at a place; see ``read_rows``. Raises ValueError for bad rows, all, and for none."""
    rows, bad = [], []
    with _uncollected():
        for where, row in located:
            try:
                one = example(parse(row))
                if one is not None:
                    rows.append(one)
            except ValueError as error:  # noqa: PERF203
                bad.append(f"{where}: {error}")
    if len(bad) == 1:
        raise ValueError(bad[0])
    if bad:
        told = [line if len(line) <= LENGTH else f"{line[:LENGTH]} …" for line in bad[:TOLD]]
        more = [f"and {len(bad) - TOLD} more"] if len(bad) > TOLD else []
        lines = "\n  ".join([*told, *more])
        raise ValueError(f"{name}: {len(bad)} of {len(rows) + len(bad)} rows are bad:\n  {lines}")
    if not rows:
        raise ValueError(f"{name}: is empty: a row to learn and one to score are wanted")
    return tuple(rows)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Hold Python's search for cycles, of which rows have none: it would go through all rows time and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def read_json(file: Path) -> Any:
    """Return what a file holds. Raises FileNotFoundError where it is missing, ValueError where it is no JSON."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    try:
        return _parsed(_bytes(file))
    except ValueError as error:
        lines = ": JSON lines are called .jsonl" if "Extra data" in str(error) else ""
        raise ValueError(f"{file}: {error}{lines}") from error


def read_saved(folder: Path, example: Callable[[Any], Example]) -> dict[str, tuple[Example, ...]]:
    """Return the rows of each split of what ``save_to_disk`` wrote, which is "train" where it wrote one dataset."""
    need(f"{folder}, a saved dataset,", "datasets")
    from datasets import Dataset, load_from_disk

    try:
        found = load_from_disk(str(folder))
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{folder}: no dataset that save_to_disk wrote: {error}") from error
    splits = {"train": found} if isinstance(found, Dataset) else found
    return {
        split: made(_table(rows, f"{folder}, {split}"), _same, example, f"{folder}, {split}")
        for split, rows in splits.items()
    }


def _lines(file: Path) -> Iterator[tuple[str, bytes]]:
    for number, line in enumerate(_bytes(file).splitlines(), start=1):
        if line.strip():
            yield f"{file}:{number}", line


def _list(file: Path) -> Iterator[tuple[str, Any]]:
    found = read_json(file)
    # MATH has a file for each row
    rows = [found] if isinstance(found, dict) and found else found
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{file}: must be a list of at least one row")
    for number, row in enumerate(rows, start=1):
        yield f"{file}, row {number}", row


def _csv(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    # not as ``datasets`` reads it, which makes 7.0 of "007" and nothing of "NA"
    try:
        text = _bytes(file).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: no UTF-8: {error.reason} at byte {error.start + 1}") from error
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            yield f"{file}:{reader.line_num}", row
    except csv.Error as error:
        raise ValueError(f"{file}:{reader.line_num}: no CSV: {error}") from error


def _fields(row: dict[str, str]) -> dict[str, str]:
    if None in row:
        raise ValueError("has more fields than the first line has names: put quotes around a text with commas")
    return {key: text for key, text in row.items() if text is not None}


def _parquet(file: Path) -> Iterator[tuple[str, Any]]:
    need(str(file), "datasets")
    import pyarrow
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from pyarrow.parquet import read_table

    try:
        table = InMemoryTable(read_table(file))
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file}: no parquet: {error}") from error
    yield from _table(Dataset(table), str(file))


def _table(rows: Dataset, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield rows without their empty fields; a class is its name."""
    classes = {key: feature.int2str for key, feature in rows.features.items() if hasattr(feature, "int2str")}
    number = 0
    for batch in rows.with_format(None).iter(1000):
        for values in zip(*batch.values()):
            number += 1
            row = {key: value for key, value in zip(batch, values) if value is not None}
            for key, named in classes.items():
                if key in row:
                    row[key] = named(row[key])
            yield f"{name}, row {number}", row


def _bytes(file: Path) -> bytes:
    return file.read_bytes().removeprefix(BOM_UTF8)


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg} at column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"no UTF-8: {error.reason} at byte {error.start + 1}") from error


def _same(row: Any) -> Any:
    return row


# of a file by its ending: what yields its rows, each with its place, and what parses one
READERS: dict[str, tuple[Callable[[Path], Iterator[tuple[str, Any]]], Callable[[Any], Any]]] = {
    ".jsonl": (_lines, _parsed),
    ".json": (_list, _same),
    ".csv": (_csv, _fields),
    ".parquet": (_parquet, _same),
}
