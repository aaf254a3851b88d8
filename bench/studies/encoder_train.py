"""One run: the tasks of an order one after the other, scored after each, as one JSON-able record."""

from __future__ import annotations

import hashlib
import platform
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.studies import encoder_model, encoder_rows
from bench.studies.encoder_methods import CONFIGURATIONS

ORDERS = {
    "forth": ("dbpedia-a", "amazon", "agnews", "dbpedia-b"),
    "back": ("dbpedia-b", "agnews", "amazon", "dbpedia-a"),
}
BATCH = 16
# ratings need more steps than topics to be learned at all
STEPS = {"dbpedia-a": 20, "dbpedia-b": 20, "agnews": 24}
STEPS_OTHER = 56
WARM_UP = 0.1
# the head starts from random weights: it learns at its own rate, the same for every method
HEAD_LR = 1e-3


@dataclass(frozen=True)
class Run:
    """One run: `order` names one of ORDERS or a single task.

    `whole` scores every task, seen or unseen, after each task; else a_i(i) and a_T(i) alone.
    """

    method: str
    order: str
    lr: float
    seed: int
    whole: bool = False

    @property
    def name(self) -> str:
        return f"{self.method}/{self.order}-lr{self.lr:g}-seed{self.seed}"


@dataclass
class Split:
    """Tokenized rows of one split, `targets` [n] int64 in the labels of all tasks."""

    texts: list[list[int]]
    targets: Tensor


@dataclass
class Prepared:
    """A task ready for the model; `allowed` [labels] bool marks the labels it is scored among."""

    splits: dict[str, Split]
    allowed: Tensor


@cache
def prepare(data: Path, names: tuple[str, ...]) -> dict[str, Prepared]:
    """Return the named tasks, tokenized, under one union of labels."""
    tasks = encoder_rows.load(data, names)
    union = [(name, label) for name, task in tasks.items() for label in task.labels]
    index = {pair: i for i, pair in enumerate(union)}
    ready = {}
    for name, task in tasks.items():
        splits = {}
        for split in ("train", "validation", "test"):
            rows = getattr(task, split)
            targets = torch.tensor([index[name, row.label] for row in rows])
            splits[split] = Split(encoder_model.tokenize([row.sentence for row in rows]), targets)
        ready[name] = Prepared(splits, torch.tensor([owner == name for owner, _ in union]))
    return ready


def execute(run: Run, data: Path) -> dict:
    """Train and score one run on one thread; return the record that goes to `results/`."""
    begun = time.perf_counter()
    torch.set_num_threads(1)
    names = ORDERS.get(run.order, (run.order,))
    tasks = prepare(data, tuple(sorted(names)))
    torch.manual_seed(run.seed)
    model = encoder_model.Classifier(labels=len(tasks[names[0]].allowed))
    matrix: list[list[float | None]] = []
    validation = []
    for i, name in enumerate(names):
        learn(model, tasks[name], run, steps(name), seed=_seed(run.seed, name))
        scored = names if run.whole or i == len(names) - 1 else (name,)
        matrix.append([accuracy(model, tasks[other], "test") if other in scored else None for other in names])
        if i == 1:
            validation = [accuracy(model, tasks[other], "validation") for other in names[:2]]
    return {
        **asdict(run),
        "tasks": names,
        "majority": [majority(tasks[name]) for name in names],
        "matrix": matrix,
        "validation": validation,
        "plasticity": sum(matrix[i][i] for i in range(len(names))) / len(names),
        "config": {
            **asdict(CONFIGURATIONS[run.method]),
            "encoder": encoder_model.PACKAGE,
            "steps": [steps(name) for name in names],
            "batch": BATCH,
            "max_tokens": encoder_model.MAX_TOKENS,
            "head_lr": HEAD_LR,
            "warm_up": WARM_UP,
        },
        "machine": machine(),
        "seconds": round(time.perf_counter() - begun, 1),
    }


def steps(task: str) -> int:
    return STEPS.get(task, STEPS_OTHER)


def learn(model: nn.Module, task: Prepared, run: Run, steps: int, seed: int) -> None:
    """Train on one task with a fresh AdamW and a fresh decomposition. Batches depend on the seed and the task alone."""
    optimizer = torch.optim.AdamW(
        [{"params": model.encoder.parameters()}, {"params": model.head.parameters(), "lr": HEAD_LR}],
        lr=run.lr,
        weight_decay=0.0,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _triangle(step, steps))
    handle = CONFIGURATIONS[run.method].bind(model.encoder, optimizer)
    rows = task.splits["train"]
    drawn = torch.randperm(len(rows.texts), generator=torch.Generator().manual_seed(seed)).tolist()
    # dropout draws from the global generator: set after attaching, so that no method shifts it
    torch.manual_seed(seed)
    model.train()
    for step in range(steps):
        batch = [drawn[(step * BATCH + j) % len(drawn)] for j in range(BATCH)]
        logits = model(*encoder_model.pad([rows.texts[j] for j in batch]), task.allowed)
        nn.functional.cross_entropy(logits, rows.targets[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    if handle is not None:
        handle.remove()


@torch.no_grad()
def accuracy(model: nn.Module, task: Prepared, split: str, batch: int = 64) -> float:
    """Return the share of the split's rows that get their label. Rows in order of length need little padding."""
    rows = task.splits[split]
    order = sorted(range(len(rows.texts)), key=lambda j: len(rows.texts[j]))
    model.eval()
    right = 0
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        guess = model(*encoder_model.pad([rows.texts[j] for j in chosen]), task.allowed).argmax(1)
        right += int((guess == rows.targets[chosen]).sum())
    return right / len(order)


def majority(task: Prepared) -> float:
    """Return the test accuracy of always naming the commonest label."""
    return int(task.splits["test"].targets.bincount().max()) / len(task.splits["test"].targets)


def machine() -> dict:
    return {
        "processor": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _triangle(step: int, steps: int) -> float:
    warm = max(1, round(WARM_UP * steps))
    return (step + 1) / warm if step < warm else (steps - step) / (steps - warm)


def _seed(seed: int, task: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {task}".encode()).digest()[:6], "big")
