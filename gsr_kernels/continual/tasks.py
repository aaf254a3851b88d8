"""Tasks: rows of prompt and completion, split once into those to learn from and those to be scored on."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gsr_kernels.continual import library
from gsr_kernels.continual.library import Row

# the pretraining text as a task: known before the first, never trained on again
GENERAL = "general"
TEST_ROWS = 200
# bounds the memory of a batch
MAX_ROW_BYTES = 1024


@dataclass(frozen=True)
class Task:
    """One task: disjoint rows for training and for the score, and a line that says what it asks."""

    name: str
    about: str
    train: tuple[Row, ...]
    test: tuple[Row, ...]

    def digest(self) -> str:
        """Sixteen hexadecimal digits of the rows: equal where two machines learned the same."""
        return hashlib.sha256(repr((self.train, self.test)).encode()).hexdigest()[:16]


def split(name: str, about: str, rows: Iterable[Row], seed: int) -> Task:
    """A task of the distinct rows, shuffled: a fifth of them, at most ``TEST_ROWS``, for the score.

    Raises:
        ValueError: fewer than two distinct rows.
    """
    # a dict keeps the order, so that a seed means the same everywhere
    distinct = list(dict.fromkeys(rows))
    if len(distinct) < 2:
        raise ValueError(f"{name} has {len(distinct)} distinct rows: it needs one to learn from and one to be scored on")
    random.Random(seed).shuffle(distinct)
    test = min(TEST_ROWS, max(1, len(distinct) // 5))
    return Task(name, about, train=tuple(distinct[test:]), test=tuple(distinct[:test]))


def general_task() -> Task:
    """General text to pretrain on, in windows without a prompt; the same for every seed."""
    about = "the next byte of documentation prose (what the model was pretrained on)"
    return split(GENERAL, about, library.general(), seed=0)


def library_tasks(seed: int) -> list[Task]:
    """The five built-in tasks, of other modules than the pretraining text; ``seed`` draws the rows.

    Raises:
        ValueError: this Python was installed without the sources of its library.
    """
    if not all(library.rows(name) for name in library.SOURCES):
        raise ValueError("this Python carries no library sources to make tasks from: give tasks of your own with --data")
    return [
        split(name, (source.__doc__ or "").strip().rstrip("."), library.rows(name), seed)
        for name, source in library.SOURCES.items()
    ]


def read_tasks(folder: str | os.PathLike[str], seed: int) -> list[Task]:
    """One task a ``*.jsonl`` file, in the order of the file names; each line ``{"prompt": str, "completion": str}``.

    Raises:
        FileNotFoundError: no such folder, or no such file in it.
        ValueError: a file that is empty or malformed, named with the line.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        what = "holds no *.jsonl file" if folder.is_dir() else "is no folder"
        raise FileNotFoundError(f"--data {folder} {what}: one JSON-lines file a task is wanted")
    for file in files:
        if file.stem == GENERAL:
            raise ValueError(f"{file}: no task may be called {GENERAL!r}, the name of the pretraining text")
    return [split(file.stem, f"rows of {file.name}", read_rows(file), seed) for file in files]


def read_rows(file: Path) -> list[Row]:
    """The rows of one file. Raises ValueError, naming file and line, for what is no row."""
    rows = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        if line.strip():
            try:
                rows.append(parse_row(line))
            except ValueError as error:
                raise ValueError(f"{file}:{number}: {error}") from error
    if len(set(rows)) < 2:
        raise ValueError(f"{file} holds {len(set(rows))} different rows: one to learn and one to score are the least")
    return rows


def parse_row(line: bytes) -> Row:
    """One line of JSON as a row. Raises ValueError for anything else than two strings, the second not empty."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"no JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError('each line must be {"prompt": text, "completion": text}')
    for key in ("prompt", "completion"):
        if not isinstance(row.get(key), str):
            raise ValueError(f"{key!r} must be a text, got {row.get(key)!r}")
    try:
        prompt, completion = row["prompt"].encode(), row["completion"].encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"no text: {error}") from error
    if not completion:
        raise ValueError("'completion' is empty: there is nothing to learn")
    if len(prompt) + len(completion) > MAX_ROW_BYTES:
        raise ValueError(
            f"prompt and completion take {len(prompt) + len(completion)} bytes, the limit is {MAX_ROW_BYTES}"
        )
    return prompt, completion
