"""The queue of a study: the runs that are still to be made, each made by the runner, and the record kept of each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from bench.studies.study import BASELINE, Study
from gsr_kernels.__main__ import main as gsr_kernels
from gsr_kernels.continual.methods import TITLES
from gsr_kernels.continual.metrics import BEFORE, ResultMatrix
from gsr_kernels.io.atomic import replacing

TUNING_SEED = 1000
SEEDS = tuple(range(8))
RUNS, RECIPE, CONDITIONS = "runs.jsonl", "recipe.yaml", "conditions.json"


@dataclass(frozen=True)
class Run:
    """One sequence of tasks under one method."""

    method: str
    order: str
    lr: float
    seed: int

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        return f"{self.method}-{self.order}-lr{self.lr:g}-seed{self.seed}"


# from the finished records to the runs that can be named by now, done or not
Plan = Callable[[Study, list[dict]], Iterator[Run]]


def read(folder: Path) -> list[dict]:
    """Return the record of every finished run."""
    file = folder / RUNS
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def keep(folder: Path, record: dict) -> None:
    """Add a record, whole or not at all."""
    with replacing(folder / RUNS) as partial:
        lines = [json.dumps(each, ensure_ascii=False) for each in (*read(folder), record)]
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def tuning(records: list[dict], method: str) -> list[dict]:
    """Return the tuning runs of one method, by rate."""
    found = [r for r in records if r["method"] == method and r["seed"] == TUNING_SEED]
    return sorted(found, key=lambda r: r["lr"])


def rates(study: Study, records: list[dict], method: str) -> list[float]:
    """Return the rates to try: the first ones, then the neighbours of the best so far."""
    first, grid, tried = study.first_rates(method), study.grid, tuning(records, method)
    if not set(first) <= {r["lr"] for r in tried}:
        return list(first)
    best = grid.index(_best(tried))
    return sorted({*first, *grid[max(best - 1, 0) : best + 2]})


def rate(study: Study, records: list[dict], method: str) -> float | None:
    """Return the rate that scored best in tuning, the lower one of a tie; None until all were tried."""
    tried = tuning(records, method)
    return _best(tried) if set(rates(study, records, method)) <= {r["lr"] for r in tried} else None


def tuned_by(record: dict) -> list[float]:
    """Return the scores that choose a rate: on rows of their own, else those after the last task."""
    return record.get("validation", record["matrix"][-1])


def _best(tried: list[dict]) -> float:
    return max(tried, key=lambda r: (sum(tuned_by(r)), -r["lr"]))["lr"]


def comparison(study: Study, records: list[dict]) -> Iterator[Run]:
    """Yield all runs that can be named by now: every method's rates first, then seed by seed at the chosen rates.

    So the methods are level wherever the queue is stopped. Last comes the baseline at the other dense methods' rates.
    """
    methods = [name for name, method in study.methods.items() if method.runner is not None]
    for method in methods:
        for lr in rates(study, records, method):
            yield Run(method, "forth", lr, TUNING_SEED)
    chosen = {method: rate(study, records, method) for method in methods}
    if None in chosen.values():
        return
    others = {lr for method, lr in chosen.items() if not study.methods[method].adapts} - {chosen[BASELINE]}
    for pairs in (chosen.items(), [(BASELINE, lr) for lr in sorted(others)]):
        for seed in SEEDS:
            for method, lr in pairs:
                yield Run(method, ("forth", "back")[seed % 2], lr, seed)


def gate(study: Study, records: list[dict]) -> Iterator[Run]:
    """Yield each task alone, once: can it be learned at all?"""
    yield Run("perft", "alone", study.grid[2], TUNING_SEED)


def prepare(study: Study, folder: Path, **options: object) -> None:
    """Fill a folder with all that the runs need; its conditions are written last.

    Raises FileExistsError for a folder in use.
    """
    if (folder / CONDITIONS).exists():
        raise FileExistsError(f"--work {folder} is prepared already: give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    # JSON is YAML
    for name, content in zip((RECIPE, CONDITIONS), study.prepare(folder, **options)):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def work(study: Study, folder: Path, plan: Plan) -> None:
    """Make the runs that the plan names and the folder lacks; this may be stopped and started at any time.

    Raises FileNotFoundError for a folder that is not prepared.
    """
    if not (folder / CONDITIONS).is_file():
        raise FileNotFoundError(f"--work {folder} is not prepared: python -m bench.studies {study.name} prepare")
    with tqdm(unit="run") as bar:
        while True:
            records = read(folder)
            done = {Run(r["method"], r["order"], r["lr"], r["seed"]) for r in records}
            missing = [run for run in plan(study, records) if run not in done]
            if not missing:
                return
            run, bar.total = missing[0], bar.n + len(missing)
            bar.set_description(run.name)
            keep(folder, execute(study, run, folder))
            shutil.rmtree(folder / "runs" / run.name)
            bar.update()


def execute(study: Study, run: Run, folder: Path) -> dict:
    """Make one run by the command, from where it was stopped, and return its record."""
    out = folder / "runs" / run.name
    method = study.methods.get(run.method)
    name = run.method if method is None else method.runner
    flags = {
        "--recipe": folder / RECIPE,
        "--model": folder / "model",
        "--data": folder / ("tune" if run.seed == TUNING_SEED else "study"),
        "--order": ",".join(study.orders[run.order]),
        "--method": name,
        "--adapter-lr" if method is not None and method.adapts else "--lr": f"{run.lr:g}",
        "--first-seed": run.seed,
        "--out": out,
        **({"--retain": folder / f"{study.retained}.txt"} if study.retained else {}),
        **(method.flags if method is not None else {}),
    }
    if gsr_kernels(["continual", *(str(text) for flag in flags.items() for text in flag), "--resume"]):
        raise SystemExit(f"{out} did not finish")
    (matrix,) = json.loads((out / "results.json").read_text("utf-8"))["matrices"][TITLES[name]]
    versions = json.loads((out / "config.json").read_text("utf-8"))["versions"]
    return asdict(run) | measured(study, ResultMatrix.from_dict(matrix)) | {"versions": versions}


def measured(study: Study, matrix: ResultMatrix) -> dict:
    """Return the shares that are kept of a result matrix: row j of `matrix` is that of the scores after task j.

    `known` is the score on the retained text, before any training and after each task.
    """
    found = {
        "tasks": list(matrix.tasks),
        "before": [matrix.score(task, BEFORE) / 100 for task in matrix.tasks],
        "matrix": [[matrix.score(task, after) / 100 for task in matrix.tasks] for after in matrix.tasks],
    }
    if study.retained:
        found["known"] = [matrix.score(study.retained, after) / 100 for after in (BEFORE, *matrix.tasks)]
    return found
