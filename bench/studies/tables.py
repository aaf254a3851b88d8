"""The tables of docs/evidence_appendix.md, from the finished runs of a study's first form."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.docs.pages import table
from bench.studies import stats
from bench.studies.frontier import CONDITIONS
from bench.studies.stats import Comparison, Interval
from bench.studies.study import BASELINE, KEPT, Study
from gsr_kernels.continual.figures import learned
from gsr_kernels.continual.metrics import ResultMatrix

MARGIN = 0.02
TUNING_SEED, RUNS = 1000, "runs.jsonl"
# the metrics of one run by their names, as shares, and those of several by seed
Metrics = dict[str, float]
Seeds = dict[int, Metrics]
# of a comparison the title, and the two that are compared
Pair = tuple[str, Seeds, Seeds]


class Judged(NamedTuple):
    """A comparison in a family of tests: its seeds, what it comes to, and its p after Holm's correction."""

    seeds: int
    comparison: Comparison
    p: float


class Tables:
    """Finished runs of a study, in a folder, and what they come to."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.earlier, self.folder = study, study.earlier, folder
        self.records = [json.loads(line) for line in (folder / RUNS).read_text("utf-8").splitlines()]
        self.titles = study.earlier.methods
        self.rates = {method: _best(self.of_tuning(method)) for method in self.titles}
        self.names = ["AP", "BWT", study.earlier.learning, *([KEPT] if study.retained else [])]

    def blocks(self) -> dict[str, str]:
        """Return the tables that the study shows, by their marks."""
        made = {
            "text": self.text,
            "gate": self.gate,
            "outcome": self.outcome,
            "rates": self.tuning,
            "matrices": self.matrices,
        }
        for name in self.names:
            made[f"{name} against SeqFT"] = partial(self.against_baseline, name)
            made[f"{name} against each other"] = partial(self.against_each_other, name)
            made[f"{name} at one rate"] = partial(self.at_one_rate, name)
        return {f"{self.study.name} {mark}": made[mark]() for mark in self.earlier.shown}

    def metrics(self, record: dict) -> Metrics:
        """Return the metrics of one run; KEPT is what is left of the score on the retained text."""
        found = matrix(record)
        metrics = {"AP": found.ap(), "BWT": found.bwt(), self.earlier.learning: learned(found)}
        if self.study.retained:
            metrics[KEPT] = record["known"][-1] / record["known"][0]
        return metrics

    def fresh_runs(self, method: str, lr: float | None = None) -> list[dict]:
        """Return the runs of a method on fresh seeds at a rate, by default the chosen one."""
        wanted = method, self.rates[method] if lr is None else lr
        return [r for r in self.records if r["seed"] != TUNING_SEED and (r["method"], r["lr"]) == wanted]

    def fresh(self, method: str, lr: float | None = None) -> Seeds:
        """Return their metrics."""
        return {run["seed"]: self.metrics(run) for run in self.fresh_runs(method, lr)}

    def compared(self) -> list[str]:
        """Return the methods with at least two fresh seeds."""
        return [method for method in self.titles if len(self.fresh_runs(method)) > 1]

    def of_tuning(self, method: str) -> list[dict]:
        """Return the tuning runs of a method, by rate."""
        found = [r for r in self.records if r["method"] == method and r["seed"] == TUNING_SEED]
        return sorted(found, key=lambda r: r["lr"])

    def tuned(self) -> dict[str, list[tuple[dict, Metrics]]]:
        """Return the tuning runs of each method that has some, with their metrics, from the lowest rate."""
        found = {method: self.of_tuning(method) for method in self.titles}
        return {method: [(run, self.metrics(run)) for run in runs] for method, runs in found.items() if runs}

    def differences(self) -> dict[str, list[float]]:
        """Return each method's AP minus the baseline's, seed by seed, in points, by its title."""
        others = [method for method in self.compared() if method != BASELINE]
        pairs = {self.titles[method]: paired(self.fresh(method), self.fresh(BASELINE), "AP") for method in others}
        return {title: [100 * (a - b) for a, b in zip(*values)] for title, values in pairs.items()}

    def text(self) -> str:
        """Return how much text of each language was learned and held out."""
        found = json.loads((self.folder / CONDITIONS).read_text(encoding="utf-8"))["text"]
        total = sum(each["learned"] for each in found.values())
        rows = [
            [language, each["learned"], f"{each['learned'] / total:.1%}", each["held out"], each["pages"], each["told"]]
            for language, each in found.items()
        ]
        held_out = ["characters held out", "pages held out", "in lines that are learned"]
        return table(["", "characters learned", "share", *held_out], rows)

    def gate(self) -> str:
        """Return what each task gains when it is learned alone, over an answer that was not learned."""
        least, rows = self.earlier.least_gain, []
        alone = [record for record in self.records if record["method"] == "perft"]
        # the first study's runs were held against the commonest label
        without = "majority" if "majority" in alone[0] else "before"
        for record in alone:
            for i, task in enumerate(record["tasks"]):
                before, score = record[without][i], record["matrix"][i][i]
                verdict = [] if least is None else ["yes" if score - before >= least else "no"]
                rows.append([task, *map(points, (before, score, score - before)), *verdict])
        header = ["task", "commonest label" if without == "majority" else without, "learned alone", "gain"]
        return table([*header, *([] if least is None else [f"gain ≥ {100 * least:.0f}"])], rows)

    def outcome(self) -> str:
        """Return each method's rate, its seeds, and the mean of each metric with its interval.

        Above them stand the scores of the model before any task, where they were taken.
        """
        rows = []
        untouched = [statistics.fmean(run["before"]) for run in self.fresh_runs(BASELINE) if "before" in run]
        if untouched:
            kept = [points(1)] if self.study.retained else []
            rows.append(["before any task", "", len(untouched), spread(stats.interval(untouched)), "", "", *kept])
        for method in self.compared():
            seeds = self.fresh(method).values()
            cells = [spread(stats.interval([seed[name] for seed in seeds])) for name in self.names]
            rows.append([self.titles[method], f"{self.rates[method]:g}", len(seeds), *cells])
        return table(["method", "lr", "seeds", *(f"{name} ↑" for name in self.names)], rows)

    def against_baseline(self, name: str) -> str:
        """Return every method against the baseline."""
        others = [method for method in self.compared() if method != BASELINE]
        return comparisons(name, [(self.titles[method], self.fresh(method), self.fresh(BASELINE)) for method in others])

    def against_each_other(self, name: str) -> str:
        """Return the study's own pairs."""
        return comparisons(name, [(question, *map(self.fresh, pair)) for question, *pair in self.earlier.pairs])

    def at_one_rate(self, name: str) -> str:
        """Return dense methods against the baseline at their rate, where that is not its own."""
        pairs = []
        for method in self.compared():
            lr = self.rates[method]
            if method not in self.earlier.adapters and lr != self.rates[BASELINE]:
                pairs.append((f"{self.titles[method]}, {lr:g}", self.fresh(method), self.fresh(BASELINE, lr)))
        return comparisons(name, pairs)

    def tuning(self) -> str:
        """Return every tuning run, the chosen rate marked.

        Where rows of their own chose it there is their mean score, and the rate whose AP was best (oracle) is marked.
        """
        rows, tuned = [], self.tuned()
        apart = any(tuned_by(run) != run["matrix"][-1] for runs in tuned.values() for run, _ in runs)
        for method, runs in tuned.items():
            best = max(metrics["AP"] for _, metrics in runs)
            for run, metrics in runs:
                chosen, oracle = run["lr"] == self.rates[method], apart and metrics["AP"] == best
                first = [points(statistics.fmean(tuned_by(run)))] if apart else []
                cells = [*first, *(points(metrics[name]) for name in self.names)]
                marks = ", ".join(["chosen"] * chosen + ["oracle"] * oracle)
                rows.append([self.titles[method], f"{run['lr']:g}", *cells, marks])
        return table(["method", "lr", *(["validation, first two"] if apart else []), *self.names, ""], rows)

    def matrices(self) -> str:
        """Return the whole result matrix of each method's first fresh run that has one."""
        shown = []
        for method in self.compared():
            run = next(run for run in self.fresh_runs(method) if not any(None in row for row in run["matrix"]))
            rows = [[after, *map(points, row)] for after, row in zip(run["tasks"], run["matrix"], strict=True)]
            title = f"{self.titles[method]}, seed {run['seed']}: F.Ra {points(matrix(run).fra())}"
            shown.append(f"{title}\n\n" + table(["after", *run["tasks"]], rows))
        return "\n\n".join(shown)


def tuned_by(record: dict) -> list[float]:
    """Return the scores that chose a rate: on rows of their own, else those after the last task."""
    return record.get("validation", record["matrix"][-1])


def _best(tried: list[dict]) -> float:
    """Return the rate that scored best, the lower one of a tie."""
    return max(tried, key=lambda r: (sum(tuned_by(r)), -r["lr"]))["lr"]


def matrix(record: dict) -> ResultMatrix:
    """Return the result matrix of one run, in shares."""
    found = ResultMatrix(record["tasks"])
    for after, row in zip(record["tasks"], record["matrix"], strict=True):
        scored = zip(record["tasks"], row, strict=True)
        found.record(after, {task: score for task, score in scored if score is not None})
    return found


def paired(a: Seeds, b: Seeds, name: str) -> tuple[list[float], list[float]]:
    """Return a metric on the seeds that both have."""
    shared = sorted(a.keys() & b.keys())
    return [a[seed][name] for seed in shared], [b[seed][name] for seed in shared]


def judge(pairs: Iterable[Pair], metric: str) -> dict[str, Judged]:
    """Return the paired comparisons of a metric, one family of Holm's, by their titles."""
    found = {title: paired(a, b, metric) for title, a, b in pairs}
    compared = {title: stats.compare(*values, MARGIN) for title, values in found.items() if len(values[0]) > 1}
    adjusted = stats.holm({title: comparison.p for title, comparison in compared.items()})
    return {title: Judged(len(found[title][0]), compared[title], adjusted[title]) for title in compared}


def comparisons(name: str, pairs: Iterable[Pair], metric: str | None = None) -> str:
    """Return the table of paired comparisons of a metric."""
    rows = []
    for title, (seeds, c, p) in judge(pairs, metric or name).items():
        cells = [spread(c.difference), chance(c.p), chance(p), points(c.detectable)]
        rows.append([title, seeds, *cells, "yes" if c.equivalent else "no"])
    header = [f"difference in {name}", "p", "p, Holm", "detectable", f"within ±{100 * MARGIN:.0f}"]
    return table(["", "seeds", *header], rows)


def chance(p: float) -> str:
    """Return a p value; one that three digits cannot hold is said to be smaller."""
    return "< 0.001" if p < 0.0005 else f"{p:.3f}"


def points(value: float) -> str:
    """Return a share in points."""
    # + 0.0 turns -0.0 into 0.0
    return f"{round(100 * value, 1) + 0.0:.1f}"


def spread(found: Interval) -> str:
    """Return a mean and its interval, in points."""
    return f"{points(found.mean)} [{points(found.low)}, {points(found.high)}]"
