"""The queue of runs: what is still missing, in order, on a few processes of one thread each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from .sampler import SOURCES
from .train import Run, execute

# from the finished records to the runs that can be named by now, done or not
Plan = Callable[[list[dict]], Iterable[Run]]

RESULTS = Path(__file__).with_name("results")
# every method begins with RATES; where the best is the last one tried on its side, the next of GRID is tried as well
GRID = (2e-5, 5e-5, 1.2e-4, 3e-4, 7.5e-4, 1.9e-3)
RATES = GRID[1:4]
TUNING_SEED = 1000
SEEDS = tuple(range(8))


def read(results: Path = RESULTS) -> list[dict]:
    """Every finished run, in the order of its path."""
    return [json.loads(path.read_text()) for path in sorted(results.glob("*/*.json"))]


def tuning(records: list[dict], method: str) -> list[dict]:
    """The tuning runs of one method, by rate."""
    found = [r for r in records if r["method"] == method and r["seed"] == TUNING_SEED]
    return sorted(found, key=lambda r: r["lr"])


def rates(
    records: list[dict], method: str, first: Sequence[float] = RATES, grid: Sequence[float] = GRID
) -> list[float]:
    """The rates to try: the first ones, then the neighbours of the best so far."""
    tried = tuning(records, method)
    if not set(first) <= {r["lr"] for r in tried}:
        return list(first)
    place = grid.index(_best(tried))
    return sorted({*first, *grid[max(place - 1, 0) : place + 2]})


def choose(
    records: list[dict], method: str, first: Sequence[float] = RATES, grid: Sequence[float] = GRID
) -> float | None:
    """The rate with the best mean score on the validation rows, once all rates were tried; the lower one wins a tie."""
    tried = tuning(records, method)
    return _best(tried) if set(rates(records, method, first, grid)) <= {r["lr"] for r in tried} else None


def comparison(records: list[dict], methods: list[str]) -> Iterator[Run]:
    """All runs that can be named by now: each method's rates first, its seeds once its rate is chosen.

    Seed by seed, so that the methods are level wherever the queue is stopped.
    """
    for method in methods:
        yield from (Run(method, "forth", lr, TUNING_SEED) for lr in rates(records, method))
    chosen = {method: choose(records, method) for method in methods}
    for seed in SEEDS:
        for method, lr in chosen.items():
            if lr is not None:
                yield Run(method, ("forth", "back")[seed % 2], lr, seed, whole=seed == 0)


def gate(records: list[dict]) -> Iterator[Run]:
    """Each task alone, once: may it be part of the study?"""
    yield from (Run("perft", task, RATES[1], TUNING_SEED) for task in SOURCES)


def work(data: Path, plan: Plan, workers: int, results: Path = RESULTS) -> None:
    """Do what `plan` names and `results` lacks until nothing is missing; it may be stopped and started at any time."""
    flying: dict[Future, Run] = {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool, tqdm(unit="run") as bar:
        while True:
            missing = [r for r in plan(read(results)) if not _path(results, r).exists()]
            bar.total = bar.n + len(missing)
            waiting = [r for r in missing if r not in flying.values()]
            for each in waiting[: workers - len(flying)]:
                flying[pool.submit(execute, each, data)] = each
            if not flying:
                return
            done, _ = wait(flying, return_when=FIRST_COMPLETED)
            for future in done:
                write(_path(results, flying.pop(future)), future.result())
                bar.update()


def _best(tried: list[dict]) -> float:
    return max(tried, key=lambda r: (sum(r["validation"]), -r["lr"]))["lr"]


def _path(results: Path, run: Run) -> Path:
    return results / f"{run.name}.json"


def write(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    part.replace(path)
