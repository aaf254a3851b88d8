"""Tables and figure of the second part, from its results, between the markers of docs/evidence.md."""

from __future__ import annotations

import json
import statistics
from functools import partial
from pathlib import Path

from gsr_kernels.continual.methods import TITLES

from .. import figures, report, runner, stats, tables
from . import runs
from .prepare import CONDITIONS
from .runs import METHODS, RESULTS

# question, method, what it is set against
PAIRS = (
    ("soft weights on all directions, or a hard cut? GSR-full against PSP", "gsr-full", "psp"),
    ("all of N rescaled, or its diagonal alone? GSR-full against GSR", "gsr-full", "gsr"),
    ("which hard cut? OSF against PSP", "osf", "psp"),
    ("does keeping adapters orthogonal act? O-LoRA against SeqLoRA", "o-lora", "seqlora"),
    ("does keeping their signs act? PS-LoRA against SeqLoRA", "ps-lora", "seqlora"),
)


def scores(record: dict) -> dict[str, float]:
    """The metrics of one run, as shares; `kept` is what is left of the score on the held-out text."""
    return tables.scores(record) | {"kept": record["known"][-1] / record["known"][0]}


def fresh(records: list[dict], method: str, lr: float | None = None) -> dict[int, dict[str, float]]:
    """The metrics of a method's fresh seeds at a rate, by default the chosen one, by seed."""
    found = method, "study", runs.rate(records, method) if lr is None else lr
    return {r["seed"]: scores(r) for r in records if (r["method"], r["part"], r["lr"]) == found}


def compared(records: list[dict]) -> list[str]:
    """The methods with at least two fresh seeds, in the order of the runner."""
    return [method for method in TITLES if method in METHODS and len(fresh(records, method)) > 1]


def text_table(results: Path) -> str:
    found = json.loads((results / CONDITIONS).read_text(encoding="utf-8"))["text"]
    total = sum(each["learned"] for each in found.values())
    rows = [
        [language, each["learned"], f"{each['learned'] / total:.1%}", each["held out"], each["pages"], each["told"]]
        for language, each in found.items()
    ]
    header = ["", "characters learned", "share", "characters held out", "pages held out", "in lines that are learned"]
    return tables.table(header, rows)


def gate(records: list[dict]) -> str:
    (record,) = (r for r in records if r["method"] == "perft")
    alone = [row[place] for place, row in enumerate(record["matrix"])]
    rows = [
        [task, *map(tables.points, (before, score, score - before))]
        for task, before, score in zip(record["tasks"], record["before"], alone, strict=True)
    ]
    return tables.table(["task", "before", "learned alone", "gain"], rows)


def outcome(records: list[dict]) -> str:
    untouched = {r["seed"]: statistics.fmean(r["before"]) for r in records if r["part"] == "study"}
    before = tables.spread(stats.interval(list(untouched.values())))
    rows = [["before any task", "", len(untouched), before, "", "", tables.points(1)]]
    for method in compared(records):
        seeds = fresh(records, method).values()
        cells = [tables.spread(stats.interval([s[key] for s in seeds])) for key in ("AP", "BWT", "LA", "kept")]
        rows.append([TITLES[method], f"{runs.rate(records, method):g}", len(seeds), *cells])
    return tables.table(["method", "lr", "seeds", "AP ↑", "BWT ↑", "learning score ↑", "held-out kept ↑"], rows)


def against_baseline(records: list[dict], key: str, name: str | None = None) -> str:
    pairs = [(TITLES[method], method, tables.BASELINE) for method in compared(records) if method != tables.BASELINE]
    return tables.comparisons(partial(fresh, records), pairs, key, name)


def against_each_other(records: list[dict], key: str, name: str | None = None) -> str:
    return tables.comparisons(partial(fresh, records), PAIRS, key, name)


def at_one_rate(records: list[dict], key: str, name: str | None = None) -> str:
    """Dense methods against SeqFT at their rate, where that is not SeqFT's own."""
    lrs = {method: runs.rate(records, method) for method in compared(records) if method not in runs.ADAPTERS}
    others = [method for method, lr in lrs.items() if lr != lrs[tables.BASELINE]]
    found = {f"{tables.BASELINE} {lr}": fresh(records, tables.BASELINE, lr) for lr in lrs.values()}
    found |= {method: fresh(records, method) for method in others}
    pairs = [(f"{TITLES[method]}, {lrs[method]:g}", method, f"{tables.BASELINE} {lrs[method]}") for method in others]
    return tables.comparisons(found.__getitem__, pairs, key, name)


def rates(records: list[dict]) -> str:
    rows = []
    for method in (method for method in TITLES if method in METHODS):
        for record in runner.tuning(records, method):
            found = scores(record)
            chosen = "chosen" if record["lr"] == runs.rate(records, method) else ""
            cells = [tables.points(found[key]) for key in ("AP", "BWT", "LA", "kept")]
            rows.append([TITLES[method], f"{record['lr']:g}", *cells, chosen])
    return tables.table(["method", "lr", "AP", "BWT", "learning score", "held-out kept", ""], rows)


def blocks(results: Path = RESULTS) -> dict[str, str]:
    """The tables of this part by their markers. Raises FileNotFoundError when there is no finished run."""
    records = runner.read(results)
    if not records:
        raise FileNotFoundError(f"{results} holds no finished run: python -m bench.studies.language run --work DIR")
    return {
        "language text": text_table(results),
        "language gate": gate(records),
        "language outcome": outcome(records),
        "language AP against SeqFT": against_baseline(records, "AP"),
        "language BWT against SeqFT": against_baseline(records, "BWT"),
        "language learning score against SeqFT": against_baseline(records, "LA", "learning score"),
        "language kept against SeqFT": against_baseline(records, "kept", "held-out kept"),
        "language against each other": against_each_other(records, "AP"),
        "language kept against each other": against_each_other(records, "kept", "held-out kept"),
        "language AP at one rate": at_one_rate(records, "AP"),
        "language learning score at one rate": at_one_rate(records, "LA", "learning score"),
        "language kept at one rate": at_one_rate(records, "kept", "held-out kept"),
        "language rates": rates(records),
    }


def write(page: Path = report.PAGE, results: Path = RESULTS) -> None:
    """Fills the markers of this part in the page and draws its figure; see `bench.studies.report.write`."""
    filling = blocks(results)
    filled = report.filled(page.read_text(encoding="utf-8"), filling)
    records = runner.read(results)
    folder = page.with_suffix("")
    found = tables.paired(partial(fresh, records), {method: TITLES[method] for method in compared(records)})
    figures.differences(found, folder / "language.svg")
    tuned = {TITLES[method]: runner.tuning(records, method) for method in TITLES if method in METHODS}
    tried = {title: [scores(record) for record in each] for title, each in tuned.items()}
    figures.trade_off(tried, folder / "language_trade_off.svg")
    report.replace(page, filled)
