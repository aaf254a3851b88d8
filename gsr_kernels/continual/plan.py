"""Plan of a run: its rows as the model will see them, its steps, memory and disk, before any weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from gsr_kernels.cli import aligned
from gsr_kernels.cli.memory import device, room
from gsr_kernels.continual.choose import Chosen
from gsr_kernels.continual.disk import disk_needed, free_disk
from gsr_kernels.continual.examples import Example, Source
from gsr_kernels.continual.kinds import Kind
from gsr_kernels.continual.memory import needed
from gsr_kernels.continual.models import WAY_OUT
from gsr_kernels.continual.ranks import first


@dataclass(frozen=True)
class Rows:
    """Rows of a task, of all seeds: how many there are, whose prompt or completion is cut; most tokens, most labels."""

    task: str
    count: int
    prompts: int
    completions: int
    longest: tuple[int, int]

    def __str__(self) -> str:
        counts = {"prompts": self.prompts, "completions": self.completions}
        some = " and ".join(f"{count} {what}" for what, count in counts.items() if count)
        return f"{self.task}: {some} of {self.count} rows are cut"


def survey(kind: Kind, drawn: Iterable[Source]) -> list[Rows]:
    """Make tokens of all rows and return what they come to, by task.

    Raises ValueError for rows of which the tokenizer makes nothing, or tokens that the model does not know.
    """
    tasks: dict[str, dict[Example, None]] = {}
    for source in drawn:
        tasks.setdefault(source.name, {}).update(dict.fromkeys(source.rows))
    total = sum(map(len, tasks.values()))
    found = []
    with tqdm(desc="rows into tokens", total=total, unit="row", leave=False, disable=not first() or None) as bar:
        for name, rows in tasks.items():
            _check_text(kind, name, [*rows])
            lengths = []
            for row in rows:
                lengths.append(_tokens(kind, name, row))
                bar.update()
            prompts, completions = (
                sum(row in cut for row in rows) for cut in (kind.truncated, kind.truncated_completions)
            )
            tokens, labels = map(max, zip(*lengths))
            found.append(Rows(name, len(rows), prompts, completions, (tokens, labels)))
    return found


def describe(
    model: Any,
    kind: Kind,
    chosen: Mapping[str, Chosen],
    draw: Sequence[Source],
    rows: Sequence[Rows],
    steps: Mapping[str, Sequence[Sequence[int]]],
    folder: Path,
) -> str:
    """Return the plan as text: the tasks of a seed, the steps and the memory of each method, and the disk.

    ``model`` is on the meta device; ``steps`` are by the methods' names, of each seed those of each stage.
    """
    cuts = {each.task: each for each in rows}
    lines: list[Sequence[str]] = [("task", "learned", "validation", "scored", "prompts cut", "completions cut")]
    for task in draw:
        cut = cuts[task.name]
        counts = len(task.train), len(task.validation), len(task.test), cut.prompts, cut.completions
        lines.append((task.name, *map(str, counts)))
    tokens, labels = map(max, zip(*(cuts[task.name].longest for task in draw)))
    columns = ("weights", "gradients", "moments", "bases", "activations", "kept", "copied")
    table: list[Sequence[str]] = [("method", "steps", *columns, "at most")]
    has, process, too_much, stays, passes = room(), _process(), [], 0, [0]
    for name, one in chosen.items():
        memory = needed(model, kind, one, (tokens, labels))
        most = _size(memory.peak) if memory.activations is not None else f"over {_size(memory.peak)}"
        sizes = [*(_size(getattr(memory, column)) for column in columns), most]
        if one.settings_of_run.fsdp:
            sizes = ["sharded"] * len(sizes)
        elif memory.peak + process > has:
            too_much.append(one.title)
        stages = steps[name][0]
        saved = memory.weights, memory.gradients, memory.moments, memory.bases, memory.saved
        left, more = disk_needed(one, *saved, tasks=len(stages), steps=max(stages))
        stays += left * len(steps[name])
        passes.append(more)
        table.append((one.title, str(sum(map(sum, steps[name]))), *sizes))
    free = free_disk(folder)
    parts = [
        "plan: rows of a task, and those of them that do not fit",
        *aligned(lines),
        f"steps of all seeds, and memory on the {device()}, which has {_size(has)}"
        + f"; this process has {_size(process)} already" * bool(process),
        *aligned(table),
        f"disk: {_size(stays)} stay, {_size(max(passes))} more while it learns; {_size(free)} are free",
    ]
    if too_much:
        parts.append(
            f"NOT ENOUGH MEMORY for {', '.join(too_much)}: lower --micro-batch or --rank, or see "
            "--gradient-checkpointing, --dtype and --fsdp"
        )
    if stays + max(passes) > free:
        parts.append("NOT ENOUGH DISK: free some, give --out on another, or leave --keep-models out")
    return "\n".join(parts)


def _process() -> int:
    """Return the memory of this process, where a run trains in that, with the libraries of training and of pictures."""
    import gsr_kernels.continual.trainer

    if find_spec("matplotlib"):
        import gsr_kernels.continual.plots  # noqa: F401
    # accelerate wants psutil too
    return psutil.Process().memory_info().rss if device() == "cpu" else 0


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.1f} MB" if count else "0"


def _check_text(kind: Kind, task: str, rows: Sequence[Example]) -> None:
    """Raise ValueError for completions, one or more, or for all prompts of a classifier, that become no token."""
    wanted = kind.wants
    texts = dict.fromkeys(getattr(row, wanted) for row in rows)
    if wanted == "completion":
        texts.update(dict.fromkeys(option for row in rows for option in row.options))
    every = kind.tokenizer([*texts], add_special_tokens=False)["input_ids"]
    lost = [text for text, tokens in zip(texts, every) if not _holds(kind, text, tokens)]
    if lost and (wanted == "completion" or len(lost) == len(texts)):
        raise ValueError(
            f"{task}: of {len(lost)} of its {len(texts)} different {wanted}s the tokenizer makes no token that it "
            f"knows, such as {lost[0]!r}: {WAY_OUT}, or leave such rows out"
        )


def _holds(kind: Kind, text: str, tokens: Sequence[int]) -> bool:
    """Tell whether the tokens hold anything of the text but unknown ones."""
    known = [token for token in tokens if token != kind.tokenizer.unk_token_id]
    return bool(known) and (bool(kind.tokenizer.decode(known).strip()) or not text.strip())


def _tokens(kind: Kind, task: str, row: Example) -> tuple[int, int]:
    """Return the numbers of a row's tokens and of its labels; ValueError for one that the model has not."""
    try:
        features = kind.features(row)
    except ValueError as error:
        raise ValueError(f"{task}: the row {row.prompt[:60]!r}: {error}") from error
    labels = features["labels"] if isinstance(features["labels"], list) else []
    largest = max(*features["input_ids"], *labels, 0, 0)
    if kind.vocabulary is not None and largest >= kind.vocabulary:
        raise ValueError(
            f"{task}: the row {row.prompt[:60]!r} has the token {largest} ({kind.tokenizer.decode([largest])!r}), and "
            f"the model knows {kind.vocabulary}, from 0 on: {WAY_OUT}"
        )
    return len(features["input_ids"]), len(labels)
