"""The frontier of one seed: what a configuration keeps as a function of what it learns, over its rates."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from bench.studies.study import KEPT

# beside KEPT, what is compared at equal learning
AP = "AP"


class Point(NamedTuple):
    """One run, all in percent: its rate, the mean score right after learning, and what is kept, by name."""

    lr: float
    learning: float
    kept: Mapping[str, float]


def point(record: Mapping) -> Point:
    """Return the point of a finished run."""
    kept = {AP: statistics.fmean(record["final"])}
    if record["text"]:
        before, last = record["text"]
        kept[KEPT] = 100 * last / before
    return Point(record["lr"], statistics.fmean(record["learned"]), kept)


def start(record: Mapping) -> Point:
    """Return the point of the model before any task, where every curve begins: a rate of 0."""
    score = statistics.fmean(record["before"])
    return Point(0.0, score, {AP: score} | ({KEPT: 100.0} if record["text"] else {}))


def at_learning(curve: Sequence[Point], learning: float, name: str) -> float:
    """Return what is kept where a curve, from its lowest rate on, first reaches a level of learning.

    Between two rates it is a straight line. A curve that stays below goes on along its last two points, of those up to
    the one that learns most, but not below zero.

    Raises ValueError for a curve of fewer than two points.
    """
    if len(curve) < 2:
        raise ValueError(f"a curve has at least two points, not {len(curve)}")
    points = sorted(curve)
    pairs = list(pairwise(points))
    top = max(range(1, len(points)), key=lambda index: points[index].learning)
    below, above = next((pair for pair in pairs if pair[0].learning <= learning <= pair[1].learning), pairs[top - 1])
    rise = above.learning - below.learning
    share = (learning - below.learning) / rise if rise else 1.0
    return max(0.0, below.kept[name] + share * (above.kept[name] - below.kept[name]))


def reaches(curve: Sequence[Point], learning: float) -> bool:
    """Return True where a curve reaches a level of learning without being prolonged."""
    return max(each.learning for each in curve) >= learning


def curves(records: Iterable[Mapping]) -> dict[str, dict[int, list[Point]]]:
    """Return the curves of all runs by configuration and seed; diverged runs are no points."""
    found: dict[str, dict[int, list[Point]]] = {}
    for record in records:
        if "diverged" not in record:
            curve = found.setdefault(record["name"], {}).setdefault(record["seed"], [start(record)])
            curve.append(point(record))
    return {name: {seed: sorted(curve) for seed, curve in sorted(of.items())} for name, of in found.items()}


def at_rate(curve: Sequence[Point], lr: float) -> Point:
    """Return the point of a rate."""
    return next(each for each in curve if each.lr == lr)
