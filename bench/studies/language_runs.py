"""The runs of the second part, each by `python -m gsr_kernels continual`, and the record that is kept of each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from bench.studies import queue
from bench.studies.language_model import CONDITIONS
from gsr_kernels.__main__ import main as gsr_kernels
from gsr_kernels.continual.methods import TITLES
from gsr_kernels.continual.metrics import BEFORE, ResultMatrix

RESULTS = Path(__file__).parent / "language" / "results"
# scored by
METRICS = {"docs": "edit", "code": "edit", "names": "edit", "arithmetic": "edit", "dates": "edit"}
ORDERS = {"forth": tuple(METRICS), "back": tuple(reversed(METRICS))}
# in the order in which the queue takes them; the last of them train adapters
ADAPTERS = ("seqlora", "o-lora", "ps-lora")
METHODS = ("seqft", "gsr", "psp", "osf", *ADAPTERS, "gsr-full", "sr")
# where the best is the last one tried on its side, the next of the grid is tried as well
GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
RATES = {method: GRID[2:5] if method in ADAPTERS else GRID[1:4] for method in METHODS}
GATE_LR = 1e-3
HELD_OUT = "held-out"
# what is the same for every run
BATCH, TEST_ROWS, NEW_TOKENS, MAX_TOKENS = 16, 96, 32, 96


@dataclass(frozen=True)
class Run:
    """One sequence of tasks under one method; `part` is "tune" or "study", whose rows it sees."""

    method: str
    part: str
    order: str
    lr: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}/{self.part}-{self.order}-lr{self.lr:g}-seed{self.seed}"


def comparison(records: list[dict], methods: Iterable[str] = METHODS) -> Iterator[Run]:
    """Yield all runs that can be named by now: every method's rates first, then seed by seed at the chosen rates.

    So the methods are level wherever the queue is stopped. Last comes SeqFT at the other dense methods' rates.
    """
    methods = list(methods)
    for method in methods:
        for lr in queue.rates(records, method, RATES[method], GRID):
            yield Run(method, "tune", "forth", lr, queue.TUNING_SEED)
    chosen = {method: rate(records, method) for method in methods}
    if None in chosen.values():
        return
    for seed in queue.SEEDS:
        for method, lr in chosen.items():
            yield Run(method, "study", ("forth", "back")[seed % 2], lr, seed)
    others = {lr for method, lr in chosen.items() if method not in ADAPTERS} - {chosen.get("seqft")}
    for lr in sorted(others):
        for seed in queue.SEEDS:
            yield Run("seqft", "study", ("forth", "back")[seed % 2], lr, seed)


def rate(records: list[dict], method: str) -> float | None:
    """Return the rate with the best AP on the rows for tuning, the lower of equal ones; None until all were tried."""
    return queue.choose(records, method, RATES[method], GRID)


def gate(records: list[dict]) -> Iterator[Run]:
    """Yield each task alone, once: can it be learned at all?"""
    yield Run("perft", "tune", "forth", GATE_LR, queue.TUNING_SEED)


def work(folder: Path, plan, results: Path = RESULTS) -> None:
    """Run what `plan` names and `results` lacks, one run after another; it may be stopped and started at any time.

    Raises FileNotFoundError for a folder that is not prepared, ValueError for results of another one.
    """
    if not (folder / CONDITIONS).is_file():
        raise FileNotFoundError(f"--work {folder} is not prepared: python -m bench.studies language prepare")
    conditions = (folder / CONDITIONS).read_text(encoding="utf-8")
    there = results / CONDITIONS
    if there.exists() and there.read_text(encoding="utf-8") != conditions:
        raise ValueError(f"--results {results} holds runs of another --work than {folder}: give another folder")
    results.mkdir(parents=True, exist_ok=True)
    there.write_text(conditions, encoding="utf-8")
    with tqdm(unit="run") as bar:
        while missing := [run for run in plan(queue.read(results)) if not (results / f"{run.name}.json").exists()]:
            bar.total = bar.n + len(missing)
            bar.set_description(missing[0].name)
            queue.write(results / f"{missing[0].name}.json", execute(missing[0], folder))
            shutil.rmtree(out_of(missing[0], folder))
            bar.update()


def out_of(run: Run, folder: Path) -> Path:
    """Return the folder of a run until its record is kept."""
    return folder / "runs" / run.name


def execute(run: Run, folder: Path) -> dict:
    """Take one run by the command, from where it was stopped."""
    out = out_of(run, folder)
    size = json.loads((folder / CONDITIONS).read_text(encoding="utf-8"))["size"]
    lr = "--adapter-lr" if run.method in ADAPTERS else "--lr"
    settings = {
        "--model": folder / "model",
        "--data": folder / run.part,
        "--retain": folder / f"{HELD_OUT}.txt",
        "--order": ",".join(ORDERS[run.order]),
        "--method": run.method,
        lr: f"{run.lr:g}",
        "--first-seed": run.seed,
        "--steps": size["steps"],
        "--batch": BATCH,
        "--test-rows": TEST_ROWS,
        "--eval-batch": TEST_ROWS,
        "--new-tokens": NEW_TOKENS,
        "--max-tokens": MAX_TOKENS,
        "--out": out,
    }
    flags = [str(text) for setting in settings.items() for text in setting]
    flags += [text for task, metric in METRICS.items() for text in ("--metric", f"{task}={metric}")]
    if (out / "config.json").is_file():
        flags.append("--resume")
    if gsr_kernels(["continual", *flags]):
        raise SystemExit(f"{out} did not finish")
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    (matrix,) = found["matrices"][TITLES[run.method]]
    return asdict(run) | measured(ResultMatrix.from_json(json.dumps(matrix)))


def measured(matrix: ResultMatrix) -> dict:
    """Return the shares that are kept of a result matrix: row j of `matrix` is that of the scores after task j.

    `known` is the score on the held-out text, before any training and after each task.
    """
    rows = [[matrix.score(task, after) / 100 for task in matrix.tasks] for after in matrix.tasks]
    return {
        "tasks": list(matrix.tasks),
        "before": [matrix.score(task, BEFORE) / 100 for task in matrix.tasks],
        "matrix": rows,
        "known": [matrix.score(HELD_OUT, after) / 100 for after in (BEFORE, *matrix.tasks)],
        "validation": rows[-1],
        "plasticity": sum(row[i] for i, row in enumerate(rows)) / len(rows),
    }
