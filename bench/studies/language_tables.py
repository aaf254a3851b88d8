"""The language model's tables of docs/evidence.md, from the finished runs."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from bench.studies import language_runs, queue, stats, tables
from bench.studies.language_model import CONDITIONS
from bench.studies.tables import BASELINE, Study, points, table
from gsr_kernels.continual.methods import TITLES

# question, method, what it is compared with
PAIRS = (
    ("soft weights on all directions, or a hard cut? GSR-full against PSP", "gsr-full", "psp"),
    ("all of N rescaled, or its diagonal alone? GSR-full against GSR", "gsr-full", "gsr"),
    ("which hard cut? OSF against PSP", "osf", "psp"),
    ("does keeping adapters orthogonal act? O-LoRA against SeqLoRA", "o-lora", "seqlora"),
    ("does keeping their signs act? PS-LoRA against SeqLoRA", "ps-lora", "seqlora"),
)
# the metrics as the tables name them
NAMES = {"AP": "AP", "BWT": "BWT", "LA": "learning score", "kept": "held-out kept"}


def scores(record: dict) -> tables.Metrics:
    """Return the metrics of one run, as shares; `kept` is what is left of the score on the held-out text."""
    return tables.scores(record) | {"kept": record["known"][-1] / record["known"][0]}


def study(records: list[dict]) -> Study:
    """Return the study of these runs."""
    titles = {method: title for method, title in TITLES.items() if method in language_runs.METHODS}
    return Study(records, titles, scores, language_runs.rate, lambda record: record["part"] == "study")


def blocks(results: Path) -> dict[str, str]:
    """Return the tables by their marks."""
    found = study(queue.read(results))

    def against_baseline(key: str) -> str:
        return found.against_baseline(key, NAMES[key])

    def against_each_other(key: str) -> str:
        return tables.comparisons(found.fresh, PAIRS, key, NAMES[key])

    return {
        "language text": text_table(results),
        "language gate": gate(found.records),
        "language outcome": outcome(found),
        "language AP against SeqFT": against_baseline("AP"),
        "language BWT against SeqFT": against_baseline("BWT"),
        "language learning score against SeqFT": against_baseline("LA"),
        "language kept against SeqFT": against_baseline("kept"),
        "language against each other": against_each_other("AP"),
        "language kept against each other": against_each_other("kept"),
        "language AP at one rate": at_one_rate(found, "AP"),
        "language learning score at one rate": at_one_rate(found, "LA"),
        "language kept at one rate": at_one_rate(found, "kept"),
        "language rates": rates(found),
    }


def text_table(results: Path) -> str:
    """Return how much text of each language was learned and held out."""
    found = json.loads((results / CONDITIONS).read_text(encoding="utf-8"))["text"]
    total = sum(each["learned"] for each in found.values())
    rows = [
        [language, each["learned"], f"{each['learned'] / total:.1%}", each["held out"], each["pages"], each["told"]]
        for language, each in found.items()
    ]
    header = ["", "characters learned", "share", "characters held out", "pages held out", "in lines that are learned"]
    return table(header, rows)


def gate(records: list[dict]) -> str:
    """Return what each task gains when it is learned alone."""
    (record,) = (r for r in records if r["method"] == "perft")
    alone = [row[i] for i, row in enumerate(record["matrix"])]
    rows = [
        [task, *map(points, (before, score, score - before))]
        for task, before, score in zip(record["tasks"], record["before"], alone, strict=True)
    ]
    return table(["task", "before", "learned alone", "gain"], rows)


def outcome(found: Study) -> str:
    """Return the metrics of every method, below those of the model before any task."""
    untouched = {r["seed"]: statistics.fmean(r["before"]) for r in found.records if r["part"] == "study"}
    before = tables.spread(stats.interval(list(untouched.values())))
    rows = [["before any task", "", len(untouched), before, "", "", points(1)], *found.outcome(NAMES)]
    return table(["method", "lr", "seeds", *(f"{name} ↑" for name in NAMES.values())], rows)


def at_one_rate(found: Study, key: str) -> str:
    """Return dense methods against SeqFT at their rate, where that is not SeqFT's own."""
    dense = [method for method in found.compared() if method not in language_runs.ADAPTERS]
    lrs = {method: found.rate(found.records, method) for method in dense}
    others = [method for method, lr in lrs.items() if lr != lrs[BASELINE]]
    seeds = {f"{BASELINE} {lr}": found.fresh(BASELINE, lr) for lr in lrs.values()}
    seeds |= {method: found.fresh(method) for method in others}
    pairs = [(f"{TITLES[method]}, {lrs[method]:g}", method, f"{BASELINE} {lrs[method]}") for method in others]
    return tables.comparisons(seeds.__getitem__, pairs, key, NAMES[key])


def rates(found: Study) -> str:
    """Return every tuning run, the chosen rate marked."""
    rows = []
    for method, tuned in found.tuned().items():
        for record, metrics in tuned:
            chosen = "chosen" if record["lr"] == found.rate(found.records, method) else ""
            rows.append([TITLES[method], f"{record['lr']:g}", *(points(metrics[key]) for key in NAMES), chosen])
    return table(["method", "lr", *NAMES.values(), ""], rows)
