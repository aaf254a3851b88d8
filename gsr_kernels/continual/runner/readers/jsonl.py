"""JSON lines: ``NAME.jsonl``, of which every seed draws a split, or ``NAME/train.jsonl`` and ``NAME/test.jsonl``."""

from __future__ import annotations

from pathlib import Path

from gsr_kernels.continual.runner.examples import Example, Source, check_apart
from gsr_kernels.continual.tasks import read_rows

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
        rows = tuple(read_rows(path, Example.of))
        if len(set(rows)) < 2:
            raise ValueError(f"{path}: needs a row to learn and one to score, has 1 distinct")
        return Source(name, f"rows of {path}", rows)
    for split in SPLITS:
        if not (path / split).is_file():
            raise FileNotFoundError(f"{path} lacks {split}: a task in a folder is {' and '.join(SPLITS)}")
    train, test = (tuple(read_rows(path / split, Example.of)) for split in SPLITS)
    check_apart(path, train, test)
    return Source(name, f"rows of {path}", train, test)
