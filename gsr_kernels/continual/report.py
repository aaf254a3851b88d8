"""What a sequential run says: the paper's table and a verdict in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from gsr_kernels.continual.experiment import Results
from gsr_kernels.continual.methods import BOUNDS
from gsr_kernels.continual.metrics import BEFORE, ResultMatrix
from gsr_kernels.continual.settings import Settings
from gsr_kernels.continual.tasks import GENERAL, Pool

BASELINE = "SeqFT"
SCORE = "percent of the completion's bytes predicted right, all bytes before them given"
LEGEND = f"""\
F.Ra: mean loss since a task's best score, lower is better; {GENERAL} counts as learned before the first task.
AP: mean of the row. learned: mean score on a task right after learning it.
better, worse: the 95 % t interval of the differences, seed by seed, leaves zero out; each figure judged by itself."""
CONFIDENT = 0.95
CAUTION = "One small model on the text of one machine: it shows the methods at work, it is no evidence on large models."


def learned(matrix: ResultMatrix) -> float:
    """The mean score on a task right after learning it: what forgetting must be weighed against."""
    return statistics.mean(matrix.score(task, task) for task in matrix.tasks)


# what a run comes to, and the sign that makes more of it better
FIGURES: dict[str, tuple[Callable[[ResultMatrix], float], int]] = {
    "F.Ra": (ResultMatrix.fra, -1),
    "AP": (ResultMatrix.ap, 1),
    "learned": (learned, 1),
}


def report(settings: Settings, pools: Sequence[Pool], results: Results) -> str:
    """All that is printed: conditions, table, figures, verdict."""
    methods = results.methods()
    parts = [conditions(settings, pools, results.seeds()), table(results.matrices)]
    if methods:
        parts.append(figures(methods))
    parts.append(LEGEND)
    if BASELINE in methods:
        parts += [verdict(title, each, methods[BASELINE]) for title, each in methods.items() if title != BASELINE]
    return "\n\n".join([*parts, CAUTION]) + "\n"


def conditions(settings: Settings, pools: Sequence[Pool], done: int) -> str:
    """What was learned, and how; ``done`` is the number of seeds that are."""
    width = max(len(pool.name) for pool in pools)
    rank = settings.method.rank or "full"
    seeds = str(settings.seeds) if done == settings.seeds else f"{done} of {settings.seeds}, unfinished"
    return "\n".join(
        [
            f"{len(pools)} tasks in turn, {settings.steps} steps of {settings.batch} rows each, after "
            f"{settings.pretrain_steps} steps on general text.",
            f"Seeds: {seeds}; each with a pretrained model, rows and order of its own, the same for every method.",
            f"AdamW, lr {settings.lr:g} for every method, 5 % warm-up, then linear to zero; "
            f"rho {settings.method.rho:g}, rank {rank}.",
            f"Score: {SCORE}.",
            "",
            *(f"  {pool.name:<{width}}  {pool.about}" for pool in pools),
        ]
    )


def table(matrices: Mapping[str, Sequence[ResultMatrix]]) -> str:
    """The paper's Table 2: every score after each task, then F.Ra and AP; mean ± deviation over the seeds."""
    first = next(iter(matrices.values()))
    lines = [_line("", "after", [*first[0].columns, "F.Ra", "AP"])]
    lines += ["-" * len(lines[0]), _row("start", "", first, BEFORE)]
    for title, each in matrices.items():
        tasks = each[0].tasks
        lines.append("")
        if title == BOUNDS["mtl"]:
            lines.append(_row(title, "all at once", each, tasks[-1]))
        elif title == BOUNDS["perft"]:
            lines += [_row(title, f"{task} only", each, task) for task in tasks]
        else:
            lines += [_row(title, task, each, task, over([matrix.fra(task) for matrix in each])) for task in tasks]
    return "\n".join(lines)


def figures(matrices: Mapping[str, Sequence[ResultMatrix]]) -> str:
    """What each method comes to at the end, a line a method."""
    lines = [_line("", "at the end", list(FIGURES))]
    for title, each in matrices.items():
        lines.append(_line(title, "", [over([value(matrix) for matrix in each]) for value, _ in FIGURES.values()]))
    return "\n".join(lines)


def verdict(title: str, ours: Sequence[ResultMatrix], baseline: Sequence[ResultMatrix]) -> str:
    """How a method compares with the baseline, seed by seed, in words; see ``confidence`` for what is a difference."""
    gains = {
        name: [sign * (value(mine) - value(theirs)) for mine, theirs in zip(ours, baseline)]
        for name, (value, sign) in FIGURES.items()
    }
    words = {name: _judge(each) for name, each in gains.items()}
    # F.Ra is negative where scores rise after their task: lower is then no less forgetting
    said = {
        "better": "F.Ra is lower",
        "worse": "F.Ra is HIGHER",
        "no difference": "F.Ra shows no difference beyond the spread of the seeds",
        "unknown": "one seed cannot tell a difference from chance",
    }
    sentence = f"{title} against {BASELINE}: {said[words['F.Ra']]}"
    if words["learned"] == "worse":
        sentence += "; it learned less"
    lines = [f"  {name:<8} {over(each, '+'):>11}   {words[name]}" for name, each in gains.items()]
    return "\n".join([f"{sentence}. Seed by seed, + is better:", *lines])


def over(values: Sequence[float], sign: str = "") -> str:
    """Mean ± sample deviation; the value alone where there is one."""
    deviation = f"±{statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{deviation}"


def confidence(values: Sequence[float]) -> float:
    """How far, in [0, 1], two or more values tell their mean from zero: Student's t of n - 1 degrees of freedom.

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


def _row(title: str, after: str, matrices: Sequence[ResultMatrix], row: str, forgotten: str = "") -> str:
    scores = [over([matrix.score(task, row) for matrix in matrices]) for task in matrices[0].columns]
    return _line(title, after, [*scores, forgotten, over([matrix.ap(row) for matrix in matrices])])


def _line(title: str, after: str, cells: Sequence[str]) -> str:
    return f"{title:<8} {after:<15}" + "".join(f" {cell:>10}" for cell in cells)
