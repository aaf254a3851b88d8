"""Files of rows: JSON lines, or one JSON list."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gsr_kernels.continual.examples import Example

# of a program, and what a simplification is compared with
MORE_TEXTS = ("source", "prefix", "test")


def read_rows(file: Path, example: Callable[[Any], Example]) -> tuple[Example, ...]:
    """Return the rows of JSON lines or of one JSON list; FileNotFoundError, or ValueError with the row's number."""

    def made(where: str, row: Any) -> Example:
        try:
            return example(row)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    rows = tuple(made(where, row) for where, row in _located(file))
    if not rows:
        raise ValueError(f"{file}: is empty: a row to learn and one to score are wanted")
    return rows


def read_json(file: Path) -> Any:
    """Return what a file holds. Raises FileNotFoundError where it is missing, ValueError where it is no JSON."""
    return _parsed(_bytes(file), str(file))


def example_of(row: Any) -> Example:
    """Make an example of a row; keys that are not its fields are left alone. Raises ValueError, naming the key."""
    prompt, completion = texts(row, "prompt", "completion")
    options = row.get("options", [])
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise ValueError(f"'options' must be a list of texts, got {options!r}")
    for option in options:
        _check_text("options", option)
    more = {key: row[key] for key in MORE_TEXTS if key in row}
    for key, text in more.items():
        _check_text(key, text)
    return Example(prompt, completion, tuple(options), **more)


def texts(row: Any, *keys: str) -> list[str]:
    """Return the texts of a row. Raises ValueError for what is no object, lacks one, or whose last one is empty."""
    wanted = ", ".join(f'"{key}": text' for key in keys)
    if not isinstance(row, Mapping):
        raise ValueError(f"each line must be {{{wanted}}}, got {row!r}")
    for key in keys:
        if key not in row:
            has = ", ".join(map(repr, row)) or "none"
            raise ValueError(
                f"{key!r} must be a text, got None: write each row as {{{wanted}}}; this one's keys: {has}"
            )
        _check_text(key, row[key])
    if not row[keys[-1]]:
        raise ValueError(f"{keys[-1]!r} is empty: there is nothing to learn")
    return [row[key] for key in keys]


def _check_text(key: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{key!r} must be a text, got {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{key!r} is no text: {error}") from error


def _located(file: Path) -> Iterator[tuple[str, Any]]:
    if file.suffix == ".jsonl":
        for number, line in enumerate(_bytes(file).splitlines(), start=1):
            if line.strip():
                yield f"{file}:{number}", _parsed(line, f"{file}:{number}")
        return
    rows = read_json(file)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{file}: must be a list of at least one row")
    for number, row in enumerate(rows, start=1):
        yield f"{file}, row {number}", row


def _bytes(file: Path) -> bytes:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    return file.read_bytes().removeprefix(BOM_UTF8)


def _parsed(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: no JSON: {error.msg} at column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: no UTF-8: {error.reason} at byte {error.start + 1}") from error
