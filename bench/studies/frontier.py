"""The frontier study: for each configuration and rate what is learned, and what is kept of what was known before.

All runs are the runner's own, many in one process; of each only what the frontier needs is scored: a task right after
it was learned, all tasks after the last, and the retained text before and at the end.
"""

from __future__ import annotations

import contextlib
import gc
import gzip
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.studies.study import Study
from gsr_kernels.cli.continual import prepared
from gsr_kernels.continual.choose import choose
from gsr_kernels.continual.metrics import BEFORE
from gsr_kernels.continual.models import quiet
from gsr_kernels.continual.run import Run as Prepared
from gsr_kernels.continual.run_state import TEST
from gsr_kernels.continual.task_sequence import TaskSequence
from gsr_kernels.continual.trainer import DivergenceError

RUNS, PACKED = "frontier.jsonl", "frontier.jsonl.gz"
RECIPE, CONDITIONS, KEPT_CONDITIONS = "recipe.yaml", "conditions.json", "frontier.json"
# their rows are apart, and their scores choose what is compared
TUNING_SEEDS = (1000, 1001)
SEEDS = range(16)


@dataclass(frozen=True)
class Run:
    """One sequence of tasks under one configuration."""

    name: str
    lr: float
    seed: int

    @property
    def folder(self) -> str:
        """Return the name of its folder."""
        return f"{self.name}-lr{self.lr:g}-seed{self.seed}"


class Sparse(TaskSequence):
    """Sequence that scores after each task that task alone, and all after the last."""

    def scores(self, model: Any, folder: Path, only: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
        """See TaskSequence.scores; the folder has the name of the task that was learned."""
        if only is None and folder.name != self.tasks[-1].name:
            only = [folder.name]
        return super().scores(model, folder, only)


def read(file: Path) -> list[dict]:
    """Return the record of every finished run, from JSON lines, packed or not."""
    if not file.exists():
        return []
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def keep(file: Path, record: dict) -> None:
    """Add a record; several processes may do so."""
    with file.open("a", encoding="utf-8") as lines:
        flock(lines, LOCK_EX)
        lines.write(json.dumps(record) + "\n")


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


def work(study: Study, folder: Path, plan: Callable[[Study], Iterable[Run]]) -> None:
    """Make the runs of a plan that the folder lacks; several processes may share them, stopped and started at any time.

    Raises FileNotFoundError for a folder that is not prepared.
    """
    if not (folder / CONDITIONS).is_file():
        raise FileNotFoundError(f"--work {folder} is not prepared: python -m bench.studies {study.name} prepare")
    (folder / "claims").mkdir(exist_ok=True)
    with quiet(), tqdm([*plan(study)], unit="run", mininterval=20) as bar:
        for run in bar:
            # accelerate collects at every task; what is there by now need not be passed over each time
            gc.collect()
            gc.freeze()
            # a lock, which goes with its process
            with (folder / "claims" / run.folder).open("w") as claim, contextlib.suppress(BlockingIOError):
                flock(claim, LOCK_EX | LOCK_NB)
                if run not in {Run(each["name"], each["lr"], each["seed"]) for each in read(folder / RUNS)}:
                    bar.set_description(run.folder)
                    keep(folder / RUNS, execute(study, run, folder))


def pack(study: Study, folder: Path, results: Path) -> None:
    """Keep the folder's runs as one compressed file, the same bytes for the same runs, and their conditions."""
    records = sorted(read(folder / RUNS), key=lambda each: (each["seed"], each["name"], each["lr"]))
    with (results / study.name / PACKED).open("wb") as file, gzip.GzipFile("", "wb", 9, file, 0) as packed:
        packed.write("".join(json.dumps(each) + "\n" for each in records).encode())
    shutil.copy(folder / CONDITIONS, results / study.name / KEPT_CONDITIONS)


def tuning(study: Study) -> Iterator[Run]:
    """Yield every configuration at its rates, the first seed first."""
    for seed in TUNING_SEEDS:
        for name, configuration in study.configurations.items():
            for lr in configuration.rates:
                yield Run(name, lr, seed)


def planned(study: Study) -> Iterator[Run]:
    """Yield the plan's runs on fresh seeds, seed by seed, so that all are level wherever this is stopped."""
    for rates in (study.plan.rates, study.plan.added):
        for seed in SEEDS:
            for name, of in rates.items():
                for lr in of:
                    yield Run(name, lr, seed)


def execute(study: Study, run: Run, folder: Path) -> dict:
    """Make one run and return its record; a diverged one has no scores."""
    job = _prepared(study, folder, run.seed)
    configuration = study.configurations[run.name]
    sets = [f"lr={run.lr:g}", *(f"{key}={value}" for key, value in configuration.settings.items())]
    [chosen] = choose([configuration.method], sets, [], job.settings).values()
    out = folder / "runs" / run.folder
    shutil.rmtree(out, ignore_errors=True)
    # the scores before training are the same for all of a seed
    shared = folder / "before" / f"{run.seed}.json"
    if shared.exists():
        out.mkdir(parents=True)
        shutil.copy(shared, out / "before.json")
    [(retained, tasks)] = job._draws
    with Path(os.devnull).open("w") as nowhere, tqdm(file=nowhere) as bar:
        sequence = Sparse(job.settings, job.kind, job.settings.model, retained, tasks, run.seed, out, bar)
        started = time.process_time()
        record = asdict(run) | {"tasks": [task.name for task in tasks]}
        try:
            matrix = sequence.learn(chosen).matrices[TEST]
        except DivergenceError as error:
            record["diverged"] = str(error)
        else:
            last = tasks[-1].name
            record["before"] = [round(matrix.score(task.name, BEFORE), 3) for task in tasks]
            record["learned"] = [round(matrix.score(task.name, task.name), 3) for task in tasks]
            record["final"] = [round(matrix.score(task.name, last), 3) for task in tasks]
            record["text"] = [matrix.score(one.name, row) for one in retained for row in (BEFORE, last)]
        record["seconds"] = round(time.process_time() - started, 1)
    shared.parent.mkdir(exist_ok=True)
    shutil.copy(out / "before.json", shared)
    shutil.rmtree(out)
    return record


def _prepared(study: Study, folder: Path, seed: int) -> Prepared:
    """Return the runner's own reading of the study's rows for a seed."""
    if (folder, seed) not in _read:
        flags = {
            "--recipe": folder / RECIPE,
            "--model": folder / "model",
            "--data": folder / ("tune" if seed in TUNING_SEEDS else "study"),
            "--order": ",".join(study.tasks[:: (1, -1)[seed % 2]]),
            # all settings of adapters are read
            "--method": "seqft,o-lora" if study.retained else "seqft",
            "--first-seed": seed,
            "--out": folder / "none",
            **study.recipe,
            **({"--retain": folder / f"{study.retained}.txt"} if study.retained else {}),
        }
        _, _, _read[folder, seed] = prepared(["continual", *(str(text) for flag in flags.items() for text in flag)])
    return _read[folder, seed]


_read: dict[tuple[Path, int], Prepared] = {}
