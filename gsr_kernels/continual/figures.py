"""Figures of a run: what each result matrix comes to, seed by seed, and against a baseline."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from gsr_kernels.continual.differences import interval, judge
from gsr_kernels.continual.methods import bound_of
from gsr_kernels.continual.metrics import ResultMatrix, Results


class Beside(NamedTuple):
    """What a figure needs beside the matrix: the test rows of each task, and the matrix of each task alone."""

    rows: Mapping[str, int] = {}
    scratch: ResultMatrix | None = None


# points below which two figures are equal
ROUNDING = 1e-9


class Figure(NamedTuple):
    """How a figure is computed, the sign that makes more of it better, and what it is."""

    of: Callable[[ResultMatrix, Beside], float]
    sign: int
    about: str


def learned(matrix: ResultMatrix) -> float:
    """Return the mean score on a task right after learning it: what forgetting must be weighed against."""
    return statistics.mean(matrix.score(task, task) for task in matrix.tasks)


FIGURES = {
    "F.Ra": Figure(lambda matrix, _: matrix.fra(), -1, "mean loss since a task's best score, lower is better"),
    "AP": Figure(lambda matrix, _: matrix.ap(), 1, "mean of the row"),
    "learned": Figure(lambda matrix, _: learned(matrix), 1, "mean score on a task right after learning it"),
    "Acc": Figure(lambda matrix, beside: matrix.acc(beside.rows), 1, "AP weighted by the test rows of each task"),
    "BWT": Figure(lambda matrix, _: matrix.bwt(), 1, "mean change since a task was learned"),
    "FWT": Figure(
        lambda matrix, beside: matrix.fwt(beside.scratch), 1, "mean score right before learning a task, less the score "
        "of a model that learned it alone"
    ),
    "FR": Figure(lambda matrix, _: matrix.fr(), -1, "mean loss since the best score up to learning a task"),
    "AAA": Figure(lambda matrix, _: matrix.aaa(), 1, "mean, over all tasks learned, of the mean score on those so far"),
}  # fmt: skip
# those that the verdict in words is about: what a method did, and better, worse or equal in words
JUDGED = {
    "F.Ra": ("lost", "less", "more", "as much"),
    "AP": ("ended", "higher", "lower", "as high"),
    "learned": ("learned", "more", "less", "as much"),
}


def measure(results: Results) -> tuple[dict[str, list[dict[str, float]]], dict[str, str]]:
    """Return the figures of each method and seed, by title, and of those that are lacking the reason."""
    found: dict[str, list[dict[str, float]]] = {}
    lacking: dict[str, str] = {}
    for title, matrices in results.methods().items():
        alone = results.matrices.get(results.scratch.get(title, ""), [])
        for index, matrix in enumerate(matrices):
            beside = Beside(results.rows, alone[index] if index < len(alone) else None)
            values = {name: _value(figure, matrix, beside) for name, figure in FIGURES.items()}
            lacking |= {name: value for name, value in values.items() if isinstance(value, str)}
            found.setdefault(title, []).append({name: v for name, v in values.items() if not isinstance(v, str)})
    return found, lacking


def select(results: Results) -> dict[str, dict[str, float]]:
    """Return of each method that is swept, by its title, the validation scores of its values, the best one first.

    A score is AP on the validation rows, of a bound that learns each task alone the mean on that one, and the mean over
    the seeds. Methods without those of all seeds, and what diverged, are left out.
    """
    chosen = {}
    for method, titles in results.sweeps.items():
        of = {title: results.validation.get(title, []) for title in titles if title not in results.diverged}
        if of and all(len(each) == len(results.seeds) for each in of.values()):
            score = learned if bound_of(method) == "alone" else ResultMatrix.ap
            means = {title: statistics.fmean(map(score, each)) for title, each in of.items()}
            chosen[method] = dict(sorted(means.items(), key=lambda pair: -pair[1]))
    return chosen


def baseline_of(results: Results) -> str:
    """Return the title that the others are compared with: of a baseline that is swept the one that is chosen."""
    return next(iter(select(results).get(results.baseline, [results.baseline])))


def _value(figure: Figure, matrix: ResultMatrix, beside: Beside) -> float | str:
    """Return a figure, or why there is none."""
    try:
        return figure.of(matrix, beside)
    except ValueError as error:
        return str(error)


def gains(ours: Sequence[Mapping[str, float]], baseline: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Return, seed by seed, by how much each figure that all have is better than the baseline's."""
    pairs = list(zip(ours, baseline))
    common = [name for name in FIGURES if all(name in each for pair in pairs for each in pair)]

    def gain(name: str, mine: Mapping[str, float], theirs: Mapping[str, float]) -> float:
        found = FIGURES[name].sign * (mine[name] - theirs[name])
        # equal means of unlike scores differ by rounding, in which every seed may agree
        return 0.0 if abs(found) < ROUNDING else found

    return {name: [gain(name, *pair) for pair in pairs] for name in common}


def compared(gained: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return of each figure's gains the mean, the 95 % interval and the verdict, for JSON."""
    return {
        name: {"mean": statistics.mean(each), "interval": interval(each), "verdict": judge(each)}
        for name, each in gained.items()
        if each
    }


def summary(results: Results) -> dict[str, Any]:
    """Return all figures, what is lacking, and the comparison with the baseline, for JSON."""
    found, lacking = measure(results)
    data: dict[str, Any] = {"figures": found, "lacking": lacking, "chosen": select(results)}
    baseline = baseline_of(results)
    if baseline in found:
        against = found[baseline]
        others = {title: each for title, each in found.items() if title != baseline}
        data["baseline"] = baseline
        data["gains"] = {title: compared(gains(each, against)) for title, each in others.items()}
    return data
