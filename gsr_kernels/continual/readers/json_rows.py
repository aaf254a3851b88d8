"""Files that hold one JSON list of rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gsr_kernels.continual.examples import Example


def read_json(file: Path) -> Any:
    """What a file holds. Raises FileNotFoundError where it is missing, ValueError where it is no JSON."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: no JSON: {error}") from error


def read_examples(
    file: Path, keys: tuple[str, str], example: Callable[[dict[str, str]], Example]
) -> tuple[Example, ...]:
    """The rows of a file, each an object whose ``keys`` are texts, the second not empty.

    Raises:
        FileNotFoundError: no such file.
        ValueError: anything else, with the number of the row, from 1.
    """
    rows = read_json(file)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{file}: must be a list of at least one row")
    examples = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys) or not row[keys[1]]:
            raise ValueError(f"{file}, row {number}: must hold the texts {' and '.join(map(repr, keys))}, got {row!r}")
        try:
            examples.append(example(row))
        except ValueError as error:
            raise ValueError(f"{file}, row {number}: {error}") from error
    return tuple(examples)
