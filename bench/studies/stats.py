"""The statistics of a few seeds: means, intervals, an exact paired test, the smallest difference it could detect."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean with the ends of its two-sided interval (Student's t)."""

    mean: float
    low: float
    high: float


class Comparison(NamedTuple):
    """A method against a baseline, paired by seed.

    `difference` is the mean of the paired differences with its 95 % interval, `p` that of the exact sign-flip test,
    `detectable` the smallest true difference that a two-sided t-test at 5 % sees with probability 0.8, `equivalent`
    whether the 90 % interval lies inside ± the margin (two one-sided tests at 5 %).
    """

    difference: Interval
    p: float
    detectable: float
    equivalent: bool


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return mean and interval of at least two values. Raises ValueError for fewer."""
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two values, not {len(values)}")
    mean = float(np.mean(values))
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values))
    return Interval(mean, mean - half, mean + half)


def sign_flip(differences: Sequence[float]) -> float:
    """Return the two-sided exact p of the mean under all 2^n sign patterns (Fisher's randomisation test).

    The smallest value possible is 2^(1-n): 1/128 with eight seeds.
    """
    d = np.asarray(differences, dtype=float)
    flips = np.array(list(itertools.product((1, -1), repeat=len(d))))
    # a hair of slack, so that rounding does not lose patterns of the same sum
    return float(np.mean(np.abs(flips @ d) >= abs(d.sum()) - 1e-9))


def holm(p: dict[str, float]) -> dict[str, float]:
    """Return Holm's step-down adjustment of several p values, by name."""
    adjusted = {}
    worst = 0.0
    for rank, (name, value) in enumerate(sorted(p.items(), key=lambda item: item[1])):
        worst = max(worst, min(1.0, (len(p) - rank) * value))
        adjusted[name] = worst
    return adjusted


def detectable(differences: Sequence[float], power: float = 0.8) -> float:
    """Return the smallest true mean difference found with probability `power` by a two-sided paired t-test at 5 %."""
    n = len(differences)
    threshold = stats.t.ppf(0.975, n - 1)

    def seen(shift: float) -> float:
        return float(stats.nct.sf(threshold, n - 1, shift) + stats.nct.cdf(-threshold, n - 1, shift))

    # by halves: where the shift is large nct is NaN, which scipy's own solvers do not take
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if seen(middle) < power else (low, middle)
    return high * float(stats.sem(differences))


def compare(values: Sequence[float], baseline: Sequence[float], margin: float) -> Comparison:
    """Compare in pairs: `values[i]` and `baseline[i]` belong to one seed."""
    d = [a - b for a, b in zip(values, baseline, strict=True)]
    narrow = interval(d, 0.9)
    return Comparison(interval(d), sign_flip(d), detectable(d), -margin < narrow.low and narrow.high < margin)
