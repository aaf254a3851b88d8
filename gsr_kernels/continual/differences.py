"""Values over seeds, and paired differences of two methods: means, intervals, and whether chance explains them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

CONFIDENT = 0.95


def over(values: Sequence[float], sign: str = "") -> str:
    """Mean ± sample deviation; the value alone where there is one."""
    deviation = f"±{statistics.stdev(values):.1f}" if len(values) > 1 else ""
    # rounding leaves of a mean that is zero a -0.0 at times
    return f"{round(statistics.mean(values), 1) + 0.0:{sign}.1f}{deviation}"


def confidence(values: Sequence[float]) -> float:
    """Return, in [0, 1], how far two or more values tell their mean from zero: Student's t, n - 1 degrees of freedom.

    Above 0.95 the 95 % interval of the mean leaves zero out.
    """
    freedom = len(values) - 1
    # the angle whose tangent is t / sqrt(freedom); all values zero: 0
    spread = statistics.stdev(values) * math.sqrt(freedom / len(values))
    return _within(math.atan2(abs(statistics.mean(values)), spread), freedom)


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % t interval of the mean; None of one value."""
    freedom = len(values) - 1
    if not freedom:
        return None
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < CONFIDENT else (low, middle)
    half = math.tan(low) * statistics.stdev(values) * math.sqrt(freedom / len(values))
    return statistics.mean(values) - half, statistics.mean(values) + half


def judge(gains: Sequence[float]) -> str:
    """Return a difference, of which more is better, in a word; of one seed, "unknown"."""
    if len(gains) < 2:
        return "unknown"
    if confidence(gains) <= CONFIDENT:
        return "unclear"
    return "better" if statistics.mean(gains) > 0 else "worse"


def _within(angle: float, freedom: int) -> float:
    """Return the share of Student's t within ``± tan(angle) sqrt(freedom)``; Abramowitz and Stegun, 26.7.3, 26.7.4."""
    odd = freedom % 2 == 1
    total, term = (angle, math.sin(angle) * math.cos(angle)) if odd else (0.0, math.sin(angle))
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (k - 1) / k
    return 2 / math.pi * total if odd else total
