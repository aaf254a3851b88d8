"""The answer of a frontier study: what each configuration keeps where it learns as much as SeqFT."""

from __future__ import annotations

import statistics
from pathlib import Path

from bench.docs.pages import table
from bench.studies import frontier, stats
from bench.studies.curves import AP, Point, at_learning, at_rate, curves, reaches
from bench.studies.study import BASELINE, Study
from bench.studies.tables import Judged, Pair, Seeds, comparisons, judge, spread

# of the learning that the baseline reaches at its best rate
SHARES = (1.0, 0.9)
# the name of what is compared, whatever it is
COMPARED = "kept"
# p of a difference that is marked, and of one that reaches the aim
SEEN, FIRM = 0.05, 0.01
# the curve of each seed
Curves = dict[int, list[Point]]


class Answer:
    """Runs of a study, tuned and fresh. Raises FileNotFoundError where there are none."""

    def __init__(self, study: Study, file: Path) -> None:
        records = frontier.read(file)
        if not records:
            raise FileNotFoundError(f"{file} holds no run: python -m bench.studies {study.name} tune")
        self.study, self.records = study, records
        self.tuned, self.fresh = (
            curves(record for record in records if (record["seed"] in frontier.TUNING_SEEDS) == tuning)
            for tuning in (True, False)
        )
        self.kept = list(self.tuned[BASELINE][frontier.TUNING_SEEDS[0]][0].kept)

    def page(self) -> dict[str, str]:
        """Return the tables of the page by their marks."""
        return {f"{self.study.name} frontier": self.answer()} if self.planned() else {}

    def appendix(self) -> dict[str, str]:
        """Return the tables of the appendix by their marks."""
        made = {"frontier tuned": self.rates(self.tuned)}
        if self.planned():
            made["frontier fresh"] = self.rates(self.fresh)
            made |= {f"frontier at {share:.0%}": self.compared(share) for share in SHARES}
            made["frontier at the best rates"] = self.compared_at_own_rates()
            made |= {f"frontier against {name}": self.compared(1.0, name) for name in self.study.plan.added}
        return {f"{self.study.name} {mark}": made[mark] for mark in made}

    def title(self, name: str) -> str:
        """Return the title of a configuration."""
        return self.study.gone.get(name) or self.study.configurations[name].title

    def planned(self) -> dict[str, Curves]:
        """Return the fresh curves of what was planned or added, of the seeds on which all of its rates were run."""
        found = {}
        for name, rates in (self.study.plan.rates | self.study.plan.added).items():
            of = self.fresh.get(name, {})
            whole = {seed: curve for seed, curve in of.items() if {each.lr for each in curve} >= set(rates)}
            if len(whole) > 1:
                found[name] = whole
        return found

    def levels(self, share: float = 1.0) -> dict[int, float]:
        """Return by seed the level of learning at which is compared."""
        base = self.planned()[BASELINE]
        return {seed: share * at_rate(curve, self.study.plan.best).learning for seed, curve in base.items()}

    def equal(self, name: str, kept: str, share: float = 1.0) -> Seeds:
        """Return what a configuration keeps at that level, as a share, under one name for all that is compared."""
        of, levels = self.planned()[name], self.levels(share)
        shared = sorted(of.keys() & levels.keys())
        return {seed: {COMPARED: at_learning(of[seed], levels[seed], kept) / 100} for seed in shared}

    def at_equal_learning(self, share: float, against: str = BASELINE) -> list[Pair]:
        """Return the plan's configurations against one, at a share of the baseline's learning: one family of Holm's."""
        names = [name for name in self.study.plan.rates if name in self.planned() and name != against]
        return [
            (f"{self.title(name)}: {kept}", self.equal(name, kept, share), self.equal(against, kept, share))
            for kept in self.kept
            for name in names
        ]

    def compared(self, share: float, against: str = BASELINE) -> str:
        """Return the table of that family."""
        pairs = self.at_equal_learning(share, against)
        return comparisons(f"what is kept at {share:.0%} of SeqFT's learning", pairs, COMPARED)

    def best(self, name: str) -> float:
        """Return the planned rate of a configuration whose AP was best on the tuning seeds."""
        rates = (self.study.plan.rates | self.study.plan.added)[name]
        tuned = self.tuned[name].values()

        def score(lr: float) -> float:
            return statistics.fmean(each.kept[AP] for curve in tuned for each in curve if each.lr == lr)

        return max(rates, key=score)

    def own(self, name: str) -> Seeds:
        """Return the AP of the fresh seeds at that rate, as a share."""
        lr = self.best(name)
        return {seed: {COMPARED: at_rate(of, lr).kept[AP] / 100} for seed, of in self.planned()[name].items()}

    def at_own_rates(self) -> list[Pair]:
        """Return the AP of the plan's configurations against the baseline's, each at its best rate: a family too."""
        names = [name for name in self.study.plan.rates if name in self.planned() and name != BASELINE]
        return [(f"{self.title(name)}, {self.best(name):g}", self.own(name), self.own(BASELINE)) for name in names]

    def compared_at_own_rates(self) -> str:
        """Return the table of that family."""
        base = f"{self.title(BASELINE)}, {self.best(BASELINE):g}"
        return comparisons(f"AP from {base}", self.at_own_rates(), COMPARED)

    def answer(self) -> str:
        """Return what each planned configuration costs and keeps at the baseline's learning: mean, interval and mark.

        The last column is its AP where it learns as it likes: at its best rate. The marks are of the planned tests.
        """
        found, times, levels, rows = self.planned(), self.seconds(), self.levels(), []
        judged = judge(self.at_equal_learning(1.0), COMPARED)
        judged |= judge(self.at_own_rates(), COMPARED) if self.study.plan.own else {}

        def cell(of: Seeds, title: str) -> str:
            return spread(stats.interval([seed[COMPARED] for seed in of.values()])) + mark(judged.get(title))

        for name, of in found.items():
            shared, title = sorted(of.keys() & levels.keys()), self.title(name)
            within = sum(reaches(of[seed], levels[seed]) for seed in shared)
            memory = f"{self.study.configurations[name].memory:g} ×".replace("-", "−")
            kept = [cell(self.equal(name, each), f"{title}: {each}") for each in self.kept]
            own = cell(self.own(name), f"{title}, {self.best(name):g}")
            time = f"{times[name] / times[BASELINE]:.1f} ×"
            rows.append([title, memory, time, *kept, f"{within} of {len(shared)}", own])
        kept = [f"{each} at equal learning ↑" for each in self.kept]
        reached = "seeds that reach SeqFT's learning"
        return table(["method", "extra memory", "CPU time", *kept, reached, "AP at own best rate ↑"], rows)

    def rates(self, curves: dict[str, Curves]) -> str:
        """Return every configuration and rate that was run, means over the seeds."""
        rows = []
        for name in [*self.study.configurations, *self.study.gone]:
            found: dict[float, list[Point]] = {}
            for each in (each for curve in curves.get(name, {}).values() for each in curve if each.lr):
                found.setdefault(each.lr, []).append(each)
            for lr, of in sorted(found.items()):
                means = [statistics.fmean(each.learning for each in of)]
                means += [statistics.fmean(each.kept[kept] for each in of) for kept in self.kept]
                rows.append([self.title(name), f"{lr:g}", len(of), *(f"{mean:.1f}" for mean in means)])
        return table(["method", "lr", "seeds", "learning", *self.kept], rows)

    def seconds(self) -> dict[str, float]:
        """Return the least CPU time of a run, by configuration: other work on the machine only ever adds to it."""
        found: dict[str, float] = {}
        for record in self.records:
            found[record["name"]] = min(record["seconds"], found.get(record["name"], record["seconds"]))
        return found


def mark(found: Judged | None) -> str:
    """Return the mark of a difference by its p after Holm's correction; none without a planned test."""
    if found is None or found.p >= SEEN:
        return ""
    up, down = "▲▼" if found.p < FIRM else "△▽"
    return f" {up if found.comparison.difference.mean > 0 else down}"
