"""The rows that the study trains and scores on: a manifest of row hashes over the CL_Benchmark layout.

A row is named by the first 12 hex digits of sha256(label, newline, sentence), so the same rows are found in any copy of
the public data that holds them, whatever their order there and whichever of train.json and test.json holds them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

MANIFEST = Path(__file__).with_name("rows.json")
TRAIN_ROWS = 896
VALIDATION_ROWS = 400
DIGITS = 12


@dataclass(frozen=True)
class Source:
    """One task: its folder in CL_Benchmark and, where a folder is split in two, the slice of its labels."""

    folder: str
    first: int = 0
    last: int | None = None


SOURCES = {
    "dbpedia-a": Source("TC/dbpedia", 0, 7),
    "dbpedia-b": Source("TC/dbpedia", 7, 14),
    "amazon": Source("SC/amazon"),
    "agnews": Source("TC/agnews"),
    "sst-2": Source("SC/SST-2"),
    "mnli": Source("NLI/MNLI"),
    "rte": Source("NLI/RTE"),
    "qqp": Source("QQP/QQP"),
    "boolqa": Source("BoolQA/BoolQA"),
    "wic": Source("WiC/WiC"),
}


@dataclass(frozen=True)
class Row:
    sentence: str
    label: str

    @property
    def name(self) -> str:
        return hashlib.sha256(f"{self.label}\n{self.sentence}".encode()).hexdigest()[:DIGITS]


@dataclass(frozen=True)
class Task:
    """The rows of one task and the labels among which it is scored."""

    name: str
    labels: tuple[str, ...]
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]


def write(data: Path) -> None:
    """Write the manifest anew from `data`."""
    MANIFEST.write_text(json.dumps(sample(data), indent=1) + "\n")


def sample(data: Path, sources: dict[str, Source] = SOURCES) -> dict:
    """Draw the manifest of `data`: training and validation rows in the order of their hashes, and every test row.

    A test row that is also a training row is left out of both.
    """
    manifest = {}
    for name, source in sources.items():
        labels = _labels(data, source)
        pool = {row.name for row in _read(data, source, "train") if row.label in labels}
        test = {row.name for row in _read(data, source, "test") if row.label in labels}
        ordered = sorted(pool - test)
        splits = {
            "train": ordered[: -VALIDATION_ROWS or None][:TRAIN_ROWS],
            "validation": ordered[-VALIDATION_ROWS:],
            "test": sorted(test - pool),
        }
        manifest[name] = {split: {"sha256": _digest(names), "rows": "".join(names)} for split, names in splits.items()}
    return manifest


def load(
    data: Path, names: tuple[str, ...], manifest: Path = MANIFEST, sources: dict[str, Source] = SOURCES
) -> dict[str, Task]:
    """Return the named tasks as the manifest lists them.

    Raises FileNotFoundError when `data` lacks a task's files, ValueError when a task is unknown, a listed row is not in
    `data` or the manifest was altered.
    """
    listed = json.loads(manifest.read_text())
    tasks = {}
    for name in names:
        if name not in listed:
            raise ValueError(f"task {name!r} is not in {manifest.name}: choose from {', '.join(listed)}")
        source = sources[name]
        rows = {row.name: row for split in ("train", "test") for row in _read(data, source, split)}
        splits = {}
        for split, entry in listed[name].items():
            wanted = [entry["rows"][i : i + DIGITS] for i in range(0, len(entry["rows"]), DIGITS)]
            if _digest(wanted) != entry["sha256"]:
                raise ValueError(f"{manifest.name}: {name}/{split} does not match its sha256; restore the file")
            missing = sum(row not in rows for row in wanted)
            if missing:
                raise ValueError(f"{data / source.folder} lacks {missing} of the {len(wanted)} rows of {name}/{split}")
            splits[split] = tuple(rows[row] for row in wanted)
        tasks[name] = Task(name, _labels(data, source), **splits)
    return tasks


def _labels(data: Path, source: Source) -> tuple[str, ...]:
    return tuple(_json(data / source.folder / "labels.json")[source.first : source.last])


def _read(data: Path, source: Source, split: str) -> list[Row]:
    return [Row(row["sentence"], row["label"]) for row in _json(data / source.folder / f"{split}.json")]


def _json(path: Path):
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: --data must name a folder in the layout CATEGORY/TASK/train.json")
    return json.loads(path.read_text(encoding="utf-8"))


def _digest(names: list[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()
