"""JSON lines: ``NAME.jsonl``, of which every seed draws a split, or ``NAME/train.jsonl`` and ``NAME/test.jsonl``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gsr_kernels.continual.examples import Example, Source, check_apart

SPLITS = ("train.jsonl", "test.jsonl")


def find(folder: Path) -> dict[str, Path]:
    """The tasks there, by name."""
    files = {file.stem: file for file in folder.glob("[!.]*.jsonl")}
    folders = {file.parent.name: file.parent for file in folder.glob("[!.]*/train.jsonl")}
    if twice := sorted(files.keys() & folders.keys()):
        raise ValueError(f"{folder} holds {twice[0]}.jsonl and {twice[0]}/train.jsonl, two tasks of one name")
    return files | folders


def read_task(name: str, path: Path, instructed: bool) -> Source:
    """One task. Raises FileNotFoundError for a missing half, ValueError, naming the line, for a malformed row."""
    if path.is_file():
        rows = read_rows(path)
        if len(set(rows)) < 2:
            raise ValueError(f"{path}: needs a row to learn and one to score, has 1 distinct")
        return Source(name, f"rows of {path}", rows)
    for split in SPLITS:
        if not (path / split).is_file():
            raise FileNotFoundError(f"{path} lacks {split}: a task in a folder is {' and '.join(SPLITS)}")
    train, test = (read_rows(path / split) for split in SPLITS)
    check_apart(path, train, test)
    return Source(name, f"rows of {path}", train, test)


def read_rows(file: Path) -> tuple[Example, ...]:
    """Return the rows of one file.

    Raises ValueError, naming file and line, for what is no row, and for none.
    """
    rows = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        if line.strip():
            try:
                rows.append(Example.of(parse_object(line)))
            except ValueError as error:
                raise ValueError(f"{file}:{number}: {error}") from error
    if not rows:
        raise ValueError(f"{file}: is empty: a row to learn and one to score are wanted")
    return tuple(rows)


def parse_object(line: bytes) -> dict[str, Any]:
    """One line of JSON with a prompt and a completion. Raises ValueError for anything else."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg} at column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"no UTF-8: {error.reason} at byte {error.start + 1}") from error
    if not isinstance(row, dict):
        raise ValueError('each line must be {"prompt": text, "completion": text}')
    for key in ("prompt", "completion"):
        if not isinstance(row.get(key), str):
            raise ValueError(f"{key!r} must be a text, got {row.get(key)!r}")
        try:
            row[key].encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"no text: {error}") from error
    if not row["completion"]:
        raise ValueError("'completion' is empty: there is nothing to learn")
    return row
