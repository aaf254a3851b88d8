"""The part that both studies' tables share: metrics of runs, and methods compared seed by seed, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from bench.studies import queue, stats
from bench.studies.stats import Interval
from gsr_kernels.continual.metrics import ResultMatrix

BASELINE = "seqft"
MARGIN = 0.02
# the metrics of one run by their names: AP (mean of the last row), BWT (backward transfer), LA (learning accuracy)
Metrics = dict[str, float]


def matrix(record: dict) -> ResultMatrix:
    """Return the result matrix of one run."""
    found = ResultMatrix(record["tasks"])
    for after, row in zip(record["tasks"], record["matrix"], strict=True):
        scored = zip(record["tasks"], row, strict=True)
        found.record(after, {task: score for task, score in scored if score is not None})
    return found


def scores(record: dict) -> Metrics:
    """Return the metrics of one run that a_i(i) and a_T(i) suffice for."""
    found = matrix(record)
    return {"AP": found.ap(), "BWT": found.bwt(), "LA": record["plasticity"]}


@dataclass(frozen=True)
class Study:
    """The finished runs of a study.

    ``titles``: its methods in the order of the tables; ``scores``: the metrics of a record; ``rate``: the chosen rate
    of a method; ``fresh_run``: whether a record is one of the fresh seeds.
    """

    records: list[dict]
    titles: Mapping[str, str]
    scores: Callable[[dict], Metrics]
    rate: Callable[[list[dict], str], float | None]
    fresh_run: Callable[[dict], bool]

    def fresh(self, method: str, lr: float | None = None) -> dict[int, Metrics]:
        """Return the metrics of a method's fresh seeds at a rate, by default the chosen one, by seed."""
        wanted = method, self.rate(self.records, method) if lr is None else lr
        return {
            r["seed"]: self.scores(r) for r in self.records if self.fresh_run(r) and (r["method"], r["lr"]) == wanted
        }

    def compared(self) -> list[str]:
        """Return the methods with at least two fresh seeds."""
        return [method for method in self.titles if len(self.fresh(method)) > 1]

    def tuned(self) -> dict[str, list[tuple[dict, Metrics]]]:
        """Return the tuning runs of each method that has some, with their metrics, from the lowest rate."""
        found = {method: queue.tuning(self.records, method) for method in self.titles}
        return {method: [(run, self.scores(run)) for run in runs] for method, runs in found.items() if runs}

    def outcome(self, keys: Iterable[str]) -> list[list]:
        """Return a row for each method: its rate, its seeds, and the mean of each metric with its interval."""
        rows = []
        for method in self.compared():
            seeds = self.fresh(method).values()
            cells = [spread(stats.interval([seed[key] for seed in seeds])) for key in keys]
            rows.append([self.titles[method], f"{self.rate(self.records, method):g}", len(seeds), *cells])
        return rows

    def against_baseline(self, key: str, name: str | None = None) -> str:
        """Return the table of every method against the baseline."""
        pairs = [(self.titles[method], method, BASELINE) for method in self.compared() if method != BASELINE]
        return comparisons(self.fresh, pairs, key, name)

    def differences(self) -> dict[str, list[float]]:
        """Return each method's AP minus the baseline's, seed by seed, in points, by its title."""
        baseline, found = self.fresh(BASELINE), {}
        for method in self.compared():
            seeds = self.fresh(method)
            if method != BASELINE:
                shared = sorted(seeds.keys() & baseline.keys())
                found[self.titles[method]] = [100 * (seeds[seed]["AP"] - baseline[seed]["AP"]) for seed in shared]
        return found


def comparisons(
    seeds_of: Callable[[str], dict[int, Metrics]],
    pairs: Iterable[tuple[str, str, str]],
    key: str,
    name: str | None = None,
) -> str:
    """Return the table of paired comparisons.

    Args:
        seeds_of: the metrics of a method, by seed.
        pairs: of each comparison a title, a method and what it is compared with.
        key: the metric.
        name: its name in the table, where that is another.
    """
    found = {}
    for title, method, other in pairs:
        a, b = seeds_of(method), seeds_of(other)
        shared = sorted(a.keys() & b.keys())
        if len(shared) > 1:
            found[title] = stats.compare([a[s][key] for s in shared], [b[s][key] for s in shared], MARGIN), len(shared)
    adjusted = stats.holm({title: comparison.p for title, (comparison, _) in found.items()})
    rows = []
    for title, (c, seeds) in found.items():
        cells = [spread(c.difference), f"{c.p:.3f}", f"{adjusted[title]:.3f}", points(c.detectable)]
        rows.append([title, seeds, *cells, "yes" if c.equivalent else "no"])
    header = [f"difference in {name or key}", "p", "p, Holm", "detectable", f"within ±{100 * MARGIN:.0f}"]
    return table(["", "seeds", *header], rows)


def points(value: float) -> str:
    """Return a share in points."""
    # + 0.0 turns -0.0 into 0.0
    return f"{round(100 * value, 1) + 0.0:.1f}"


def spread(found: Interval) -> str:
    """Return a mean and its interval, in points."""
    return f"{points(found.mean)} [{points(found.low)}, {points(found.high)}]"


def table(header: list[str], rows: list[list]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
