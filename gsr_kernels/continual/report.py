"""Report of a sequential run: the paper's table and a verdict in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from gsr_kernels.cli import aligned
from gsr_kernels.continual.methods import BOUNDS
from gsr_kernels.continual.metrics import BEFORE, ResultMatrix, Results

BASELINE = "SeqFT"
LEGEND = """\
F.Ra: mean loss since a task's best score, lower is better{known}.
AP: mean of the row. learned: mean score on a task right after learning it.
better, worse: the 95 % t interval of the differences, seed by seed, leaves zero out; each figure judged by itself."""
CONFIDENT = 0.95
# of a table's cells and of its two columns of names, at least
CELL = 10
NAMES = (8, 15)


def learned(matrix: ResultMatrix) -> float:
    """Return the mean score on a task right after learning it: what forgetting must be weighed against."""
    return statistics.mean(matrix.score(task, task) for task in matrix.tasks)


# what a run comes to, and the sign that makes more of it better
FIGURES: dict[str, tuple[Callable[[ResultMatrix], float], int]] = {
    "F.Ra": (ResultMatrix.fra, -1),
    "AP": (ResultMatrix.ap, 1),
    "learned": (learned, 1),
}


def figures_of(matrix: ResultMatrix) -> dict[str, tuple[Callable[[ResultMatrix], float], int]]:
    """Return the figures that a run of such a matrix has: one task alone is not forgotten."""
    return {name: figure for name, figure in FIGURES.items() if matrix.forgets or name != "F.Ra"}


def report(results: Results, conditions: str, *notes: str) -> str:
    """Return all that is printed: conditions, table, figures, verdict, notes."""
    methods = results.methods()
    parts = [conditions, table(results.matrices)]
    if methods:
        parts.append(figures(methods))
    known = ", ".join(next(iter(results.matrices.values()))[0].known)
    parts.append(LEGEND.format(known=f"; {known} counts as learned before the first task" if known else ""))
    if BASELINE in methods:
        parts += [verdict(title, each, methods[BASELINE]) for title, each in methods.items() if title != BASELINE]
    return "\n\n".join([*parts, *notes]) + "\n"


def table(matrices: Mapping[str, Sequence[ResultMatrix]]) -> str:
    """Return the paper's Table 2: every score after each task, then F.Ra and AP; mean ± deviation over the seeds."""
    first = next(iter(matrices.values()))
    rows: list[list[str]] = [_row("start", "", first, BEFORE)]
    for title, each in matrices.items():
        tasks = each[0].tasks
        rows.append([])
        if title == BOUNDS["mtl"]:
            rows.append(_row(title, "all at once", each, tasks[-1]))
        elif title == BOUNDS["perft"]:
            rows += [_row(title, f"{task} only", each, task) for task in tasks]
        else:
            rows += [_row(title, task, each, task, _forgotten(each, task)) for task in tasks]
    lines = aligned([["", "after", *first[0].columns, "F.Ra", "AP"], *rows], NAMES, CELL)
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def figures(matrices: Mapping[str, Sequence[ResultMatrix]]) -> str:
    """Return the figures of each method at the end, a line a method."""
    figured = figures_of(next(iter(matrices.values()))[0])
    rows = [["", "at the end", *figured]]
    for title, each in matrices.items():
        rows.append([title, "", *(over([value(matrix) for matrix in each]) for value, _ in figured.values())])
    return "\n".join(aligned(rows, NAMES, CELL))


def verdict(title: str, ours: Sequence[ResultMatrix], baseline: Sequence[ResultMatrix]) -> str:
    """Compare a method with the baseline, seed by seed, in words; see ``confidence`` for what is a difference."""
    gains = {
        name: [sign * (value(mine) - value(theirs)) for mine, theirs in zip(ours, baseline)]
        for name, (value, sign) in figures_of(baseline[0]).items()
    }
    words = {name: _judge(each) for name, each in gains.items()}
    # F.Ra is negative where scores rise after their task: lower is then no less forgetting
    said = {
        "better": "F.Ra is lower",
        "worse": "F.Ra is HIGHER",
        "no difference": "F.Ra shows no difference beyond the spread of the seeds",
        "unknown": "one seed cannot tell a difference from chance",
    }
    sentence = f"{title} against {BASELINE}: {said[words['F.Ra']] if 'F.Ra' in words else 'one task, none forgotten'}"
    if words["learned"] == "worse":
        sentence += "; it learned less"
    lines = [f"  {name:<8} {over(each, '+'):>11}   {words[name]}" for name, each in gains.items()]
    return "\n".join([f"{sentence}. Seed by seed, + is better:", *lines])


def over(values: Sequence[float], sign: str = "") -> str:
    """Mean ± sample deviation; the value alone where there is one."""
    deviation = f"±{statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{deviation}"


def confidence(values: Sequence[float]) -> float:
    """Return, in [0, 1], how far two or more values tell their mean from zero: Student's t, n - 1 degrees of freedom.

    Above 0.95 the 95 % interval of the mean leaves zero out. Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    freedom = len(values) - 1
    # the angle whose tangent is t / sqrt(freedom); all values zero: 0
    angle = math.atan2(abs(statistics.mean(values)), statistics.stdev(values) * math.sqrt(freedom / len(values)))
    odd = freedom % 2 == 1
    total, term = (angle, math.sin(angle) * math.cos(angle)) if odd else (0.0, math.sin(angle))
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (k - 1) / k
    return 2 / math.pi * total if odd else total


def _judge(gains: Sequence[float]) -> str:
    if len(gains) < 2:
        return "unknown"
    if confidence(gains) <= CONFIDENT:
        return "no difference"
    return "better" if statistics.mean(gains) > 0 else "worse"


def _forgotten(matrices: Sequence[ResultMatrix], task: str) -> str:
    # nothing was learned before the first task where none was known
    if not matrices[0].known and task == matrices[0].tasks[0]:
        return ""
    return over([matrix.fra(task) for matrix in matrices])


def _row(title: str, after: str, matrices: Sequence[ResultMatrix], row: str, forgotten: str = "") -> list[str]:
    scores = [
        "–" if any(task in matrix.lacking(row) for matrix in matrices)
        else over([matrix.score(task, row) for matrix in matrices])
        for task in matrices[0].columns
    ]  # fmt: skip
    return [title, after, *scores, forgotten, "–" if "–" in scores else over([matrix.ap(row) for matrix in matrices])]
