"""Rows of published files as tasks of a recipe: what can be learned and scored, up to a number of tokens each."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gsr_kernels.continual.evaluators import evaluator
from gsr_kernels.continual.examples import Example
from gsr_kernels.continual.folder import write_text
from gsr_kernels.continual.formats import example_of
from gsr_kernels.continual.kinds import Causal
from gsr_kernels.continual.readers import VALIDATION
from gsr_kernels.continual.row_files import READERS

# words of a path that say what its rows are for; the others are learned
SPLITS = {"test": "test", "humaneval": "test"} | dict.fromkeys(VALIDATION, "validation")
# what Mol-Instructions says of each row, in a dict or, on the hub, in its text
OWN_SPLIT = re.compile(r"""["']split["']: *["'](\w+)""")


@dataclass(frozen=True)
class Prepared:
    """Rows of a task by split, the tokens of those to learn, and how many were left out, by reason."""

    name: str
    splits: Mapping[str, Mapping[Example, Any]]
    tokens: int
    dropped: Counter[str]

    def write(self, folder: Path) -> None:
        """Write the splits as the runner reads them: one file where a seed is to draw the test."""
        alone = len(self.splits) == 1
        for split, rows in self.splits.items():
            path = folder / f"{self.name}.jsonl" if alone else folder / self.name / f"{split}.jsonl"
            lines = [json.dumps(_written(one, row), ensure_ascii=False) for one, row in rows.items()]
            write_text(path, "\n".join([*lines, ""]))


def prepare(folder: Path, metric: str, kind: Causal, tokens: int, seed: int) -> Prepared:
    """Choose the rows of a task, called as the folder of its files: to learn at most so many tokens, drawn by the seed.

    Raises FileNotFoundError where there is no file of rows, ValueError where none of a split is left.
    """
    found, dropped = _read(folder)
    if not found["test"]:
        # CMB's has no answers
        found["test"] = found.pop("validation", {})
    held = {split: rows for split, rows in found.items() if split != "train" and rows}
    asked = {one.prompt for rows in held.values() for one in rows}
    shuffled = random.Random(seed).sample([*found["train"].items()], len(found["train"]))
    splits: dict[str, dict[Example, Any]] = {"train": {}, **{split: {} for split in held}}
    count = 0
    for one, row in shuffled:
        why = "asked in the test" if one.prompt in asked else f"beyond {tokens:,} tokens" if count >= tokens else ""
        # where a seed draws the test every row may be scored
        why = why or _unfit(one, kind, "" if held else metric)
        if why:
            dropped[why] += 1
        else:
            splits["train"][one] = row
            count += len(kind.features(one)["input_ids"])
    for split, rows in held.items():
        for one, row in rows.items():
            if why := _unfit(one, kind, metric):
                dropped[why] += 1
            else:
                splits[split][one] = row
    empty = [split for split, rows in splits.items() if not rows]
    if empty:
        reasons = "; ".join(f"{why}: {number}" for why, number in dropped.items()) or "no row is for it"
        raise ValueError(f"{folder}: no row is left for {' and '.join(empty)}: {reasons}")
    return Prepared(folder.name, splits, count, dropped)


def _read(folder: Path) -> tuple[dict[str, dict[Example, Any]], Counter[str]]:
    """Return the different rows of all files by split, each with what it is written as, and how many are none."""
    found: dict[str, dict[Example, Any]] = {"train": {}, "test": {}, "validation": {}}
    dropped: Counter[str] = Counter()
    files = sorted(file for file in folder.rglob("[!.]*") if file.suffix in READERS)
    if not files:
        raise FileNotFoundError(f"{folder} holds no file of rows ({', '.join(READERS)}): put the task's there")
    for file in files:
        by_path = _split_of(str(file.relative_to(folder)))
        located, parse = READERS[file.suffix]
        for _, raw in located(file):
            try:
                row = parse(raw)
                one = example_of(row)
            except ValueError as error:
                dropped[re.split(", got |: ", str(error))[0]] += 1
                continue
            own = OWN_SPLIT.search(str(row.get("metadata")))
            rows = found[_split_of(own[1]) if own else by_path]
            if one in rows:
                dropped["given twice"] += 1
            rows[one] = row
    return found, dropped


def _split_of(text: str) -> str:
    words = re.split(r"[^a-z]+", text.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), "train")


def _unfit(one: Example, kind: Causal, metric: str) -> str:
    """Return why a row cannot be learned, or scored by a metric where one is given; nothing where it can."""
    if metric and evaluator(metric).asks == "choice" and not one.options:
        return f"without options, which {metric} wants"
    if metric == "pass@1" and not one.test:
        return "without a test, which pass@1 wants"
    kind.features(one)
    cut = one in kind.truncated or one in kind.truncated_completions
    return f"longer than {kind.max_tokens:,} tokens" if cut else ""


def _written(one: Example, row: Any) -> Any:
    # conversations and labels keep their form
    if type(one) is not Example:
        return row
    return {key: value for key, value in asdict(one).items() if value or key == "prompt"}
