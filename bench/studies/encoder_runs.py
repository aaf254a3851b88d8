"""The encoder's runs: what is still missing, in order, on a few processes of one thread each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from bench.studies import queue
from bench.studies.encoder_rows import SOURCES
from bench.studies.encoder_train import Run, execute
from bench.studies.queue import SEEDS, TUNING_SEED, read

# from the finished records to the runs that can be named by now, done or not
Plan = Callable[[list[dict]], Iterable[Run]]

RESULTS = Path(__file__).with_name("results")
# every method begins with RATES; where the best is the last one tried on its side, the next of GRID is tried as well
GRID = (2e-5, 5e-5, 1.2e-4, 3e-4, 7.5e-4, 1.9e-3)
RATES = GRID[1:4]


def rate(records: list[dict], method: str) -> float | None:
    """Return the rate that validation rows chose, None until all were tried."""
    return queue.choose(records, method, RATES, GRID)


def comparison(records: list[dict], methods: list[str]) -> Iterator[Run]:
    """Yield all runs that can be named by now: each method's rates first, its seeds once its rate is chosen.

    Seed by seed, so that the methods are level wherever the queue is stopped.
    """
    for method in methods:
        yield from (Run(method, "forth", lr, TUNING_SEED) for lr in queue.rates(records, method, RATES, GRID))
    chosen = {method: rate(records, method) for method in methods}
    for seed in SEEDS:
        for method, lr in chosen.items():
            if lr is not None:
                yield Run(method, ("forth", "back")[seed % 2], lr, seed, whole=seed == 0)


def gate(records: list[dict]) -> Iterator[Run]:
    """Yield each task alone, once: may it be part of the study?"""
    yield from (Run("perft", task, RATES[1], TUNING_SEED) for task in SOURCES)


def work(data: Path, plan: Plan, workers: int, results: Path = RESULTS) -> None:
    """Run what `plan` names and `results` lacks until nothing is missing; it may be stopped and started at any time."""
    flying: dict[Future, Run] = {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool, tqdm(unit="run") as bar:
        while True:
            missing = [run for run in plan(read(results)) if not path(results, run).exists()]
            bar.total = bar.n + len(missing)
            waiting = [run for run in missing if run not in flying.values()]
            for each in waiting[: workers - len(flying)]:
                flying[pool.submit(execute, each, data)] = each
            if not flying:
                return
            done, _ = wait(flying, return_when=FIRST_COMPLETED)
            for future in done:
                queue.write(path(results, flying.pop(future)), future.result())
                bar.update()


def path(results: Path, run: Run) -> Path:
    """Return the file of a run's record."""
    return results / f"{run.name}.json"
