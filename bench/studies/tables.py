"""The tables of docs/evidence.md, from the finished runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from gsr_kernels.continual.metrics import ResultMatrix

from . import runner, stats
from .configurations import CONFIGURATIONS
from .stats import Interval

BASELINE = "seqft"
MARGIN = 0.02
GATE = 0.20
# question, method, what it is set against
PAIRS = (
    ("does the diagonal's rescaling act? ρ 1 against ρ 0", "gsr-drop", "gsr-drop-rho0"),
    ("does dropping what lies outside the span act? drop against keep", "gsr-drop", "gsr-keep"),
    ("all of N rescaled, or its diagonal alone?", "gsr-full", "gsr-drop"),
    ("soft weights on all directions, or a hard cut?", "gsr-full", "psp"),
    ("which hard cut? OSF against PSP", "osf", "psp"),
)


def matrix(record: dict) -> ResultMatrix:
    """The result matrix of one run."""
    found = ResultMatrix(record["tasks"])
    for after, row in zip(record["tasks"], record["matrix"], strict=True):
        scored = zip(record["tasks"], row, strict=True)
        found.record(after, {task: score for task, score in scored if score is not None})
    return found


def scores(record: dict) -> dict[str, float]:
    """The metrics of one run that a_i(i) and a_T(i) suffice for."""
    found = matrix(record)
    return {"AP": found.ap(), "BWT": found.bwt(), "LA": record["plasticity"]}


def fresh(records: list[dict], method: str) -> dict[int, dict[str, float]]:
    """The metrics of a method's fresh seeds at its chosen rate, by seed."""
    lr = runner.choose(records, method)
    chosen = [r for r in records if r["method"] == method and r["seed"] in runner.SEEDS and r["lr"] == lr]
    return {record["seed"]: scores(record) for record in chosen}


def compared(records: list[dict]) -> list[str]:
    """The methods with at least two fresh seeds, in the order of the configurations."""
    return [name for name in CONFIGURATIONS if name != "perft" and len(fresh(records, name)) > 1]


def outcome(records: list[dict]) -> str:
    rows = []
    for method in compared(records):
        seeds = fresh(records, method)
        cells = [spread(stats.interval([s[key] for s in seeds.values()])) for key in ("AP", "BWT", "LA")]
        rows.append([CONFIGURATIONS[method].title, f"{runner.choose(records, method):g}", len(seeds), *cells])
    return table(["method", "lr", "seeds", "AP ↑", "BWT ↑", "learning accuracy ↑"], rows)


def against_baseline(records: list[dict], key: str) -> str:
    names = [name for name in compared(records) if name != BASELINE]
    pairs = [(CONFIGURATIONS[name].title, name, BASELINE) for name in names]
    return comparisons(lambda name: fresh(records, name), pairs, key)


def differences(records: list[dict]) -> dict[str, list[float]]:
    """Each method's AP minus the baseline's, seed by seed, in points."""
    return paired(partial(fresh, records), {name: CONFIGURATIONS[name].title for name in compared(records)})


def against_each_other(records: list[dict]) -> str:
    return comparisons(lambda name: fresh(records, name), PAIRS, "AP")


def rates(records: list[dict]) -> str:
    rows = []
    for method in CONFIGURATIONS:
        tried = runner.tuning(records, method) if method != "perft" else []
        best = max((scores(r)["AP"] for r in tried), default=None)
        for record in tried:
            found = scores(record)
            marks = ["chosen"] * (record["lr"] == runner.choose(records, method)) + ["oracle"] * (found["AP"] == best)
            first = sum(record["validation"]) / len(record["validation"])
            cells = [points(first), *(points(found[key]) for key in ("AP", "BWT", "LA")), ", ".join(marks)]
            rows.append([CONFIGURATIONS[method].title, f"{record['lr']:g}", *cells])
    return table(["method", "lr", "validation, first two", "AP", "BWT", "learning accuracy", ""], rows)


def gate(records: list[dict]) -> str:
    rows = []
    for record in (r for r in records if r["method"] == "perft" and r["seed"] == runner.TUNING_SEED):
        score, majority = record["matrix"][0][0], record["majority"][0]
        verdict = "yes" if score - majority >= GATE else "no"
        rows.append([record["tasks"][0], points(majority), points(score), points(score - majority), verdict])
    return table(["task", "commonest label", "PerFT", "gain", f"gain ≥ {100 * GATE:.0f}"], rows)


def matrices(records: list[dict]) -> str:
    blocks = []
    for method in compared(records):
        lr = runner.choose(records, method)
        whole = [r for r in records if r["method"] == method and r["whole"] and r["lr"] == lr]
        for record in whole:
            title = f"{CONFIGURATIONS[method].title}, seed {record['seed']}: F.Ra {points(matrix(record).fra())}"
            rows = [[after, *map(points, row)] for after, row in zip(record["tasks"], record["matrix"], strict=True)]
            blocks.append(f"{title}\n\n" + table(["after", *record["tasks"]], rows))
    return "\n\n".join(blocks)


def comparisons(
    seeds_of: Callable[[str], dict[int, dict[str, float]]],
    pairs: Iterable[tuple[str, str, str]],
    key: str,
    name: str | None = None,
) -> str:
    """Paired comparisons: each a title, a method and what it is set against, whose metrics ``seeds_of`` gives.

    ``name`` is the key's in the table, where that is another.
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


def tried(records: list[dict]) -> dict[str, list[dict[str, float]]]:
    """The metrics of each method's tuning runs by its title, from the lowest rate to the highest."""
    found = {CONFIGURATIONS[name].title: runner.tuning(records, name) for name in CONFIGURATIONS if name != "perft"}
    return {title: [scores(record) for record in runs] for title, runs in found.items() if runs}


def paired(seeds_of: Callable[[str], dict[int, dict[str, float]]], titles: dict[str, str]) -> dict[str, list[float]]:
    """Each method's AP minus the baseline's, seed by seed, in points, by its title."""
    baseline = seeds_of(BASELINE)
    found = {}
    for name, title in titles.items():
        seeds = seeds_of(name)
        if name != BASELINE:
            found[title] = [100 * (seeds[s]["AP"] - baseline[s]["AP"]) for s in sorted(seeds.keys() & baseline.keys())]
    return found


def points(value: float) -> str:
    """A share in points."""
    # + 0.0 turns -0.0 into 0.0
    return f"{round(100 * value, 1) + 0.0:.1f}"


def spread(found: Interval) -> str:
    """A mean and its interval, in points."""
    return f"{points(found.mean)} [{points(found.low)}, {points(found.high)}]"


def table(header: list[str], rows: list[list]) -> str:
    """In Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
