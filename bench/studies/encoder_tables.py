"""The encoder's tables of docs/evidence.md, from the finished runs."""

from __future__ import annotations

from bench.studies import encoder_runs, queue, tables
from bench.studies.encoder_methods import COMPARED, CONFIGURATIONS
from bench.studies.tables import Study, points, table

GATE = 0.20
# question, method, what it is compared with
PAIRS = (
    ("does the diagonal's rescaling act? ρ 1 against ρ 0", "gsr-drop", "gsr-drop-rho0"),
    ("does dropping what lies outside the span act? drop against keep", "gsr-drop", "gsr-keep"),
    ("all of N rescaled, or its diagonal alone?", "gsr-full", "gsr-drop"),
    ("soft weights on all directions, or a hard cut?", "gsr-full", "psp"),
    ("which hard cut? OSF against PSP", "osf", "psp"),
)


def study(records: list[dict]) -> Study:
    """Return the study of these runs."""
    titles = {name: CONFIGURATIONS[name].title for name in COMPARED}
    return Study(records, titles, tables.scores, encoder_runs.rate, lambda record: record["seed"] in queue.SEEDS)


def blocks(records: list[dict]) -> dict[str, str]:
    """Return the tables by their marks."""
    found = study(records)
    metrics = ["AP ↑", "BWT ↑", "learning accuracy ↑"]
    return {
        "gate": gate(records),
        "outcome": table(["method", "lr", "seeds", *metrics], found.outcome(("AP", "BWT", "LA"))),
        "AP against SeqFT": found.against_baseline("AP"),
        "BWT against SeqFT": found.against_baseline("BWT"),
        "learning accuracy against SeqFT": found.against_baseline("LA"),
        "against each other": tables.comparisons(found.fresh, PAIRS, "AP"),
        "rates": rates(found),
        "matrices": matrices(found),
    }


def gate(records: list[dict]) -> str:
    """Return what each task gains over its commonest label when it is learned alone."""
    rows = []
    for record in (r for r in records if r["method"] == "perft" and r["seed"] == queue.TUNING_SEED):
        score, majority = record["matrix"][0][0], record["majority"][0]
        verdict = "yes" if score - majority >= GATE else "no"
        rows.append([record["tasks"][0], points(majority), points(score), points(score - majority), verdict])
    return table(["task", "commonest label", "PerFT", "gain", f"gain ≥ {100 * GATE:.0f}"], rows)


def rates(found: Study) -> str:
    """Return every tuning run, the chosen rate marked, and the one whose AP was best (oracle)."""
    rows = []
    for method, tuned in found.tuned().items():
        best = max(metrics["AP"] for _, metrics in tuned)
        for record, metrics in tuned:
            chosen = record["lr"] == found.rate(found.records, method)
            marks = ["chosen"] * chosen + ["oracle"] * (metrics["AP"] == best)
            first = sum(record["validation"]) / len(record["validation"])
            cells = [points(first), *(points(metrics[key]) for key in ("AP", "BWT", "LA")), ", ".join(marks)]
            rows.append([found.titles[method], f"{record['lr']:g}", *cells])
    return table(["method", "lr", "validation, first two", "AP", "BWT", "learning accuracy", ""], rows)


def matrices(found: Study) -> str:
    """Return the whole result matrix of each method's first seed."""
    shown = []
    for method in found.compared():
        wanted = method, found.rate(found.records, method)
        for record in (r for r in found.records if r["whole"] and (r["method"], r["lr"]) == wanted):
            fra = points(tables.matrix(record).fra())
            rows = [[after, *map(points, row)] for after, row in zip(record["tasks"], record["matrix"], strict=True)]
            title = f"{found.titles[method]}, seed {record['seed']}: F.Ra {fra}"
            shown.append(f"{title}\n\n" + table(["after", *record["tasks"]], rows))
    return "\n\n".join(shown)
