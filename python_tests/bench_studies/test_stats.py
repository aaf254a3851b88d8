"""The study's statistics against brute force and known values."""

import itertools
import math

import numpy as np
import pytest

from bench.studies import stats


def test_interval_is_students():
    # t with 3 degrees of freedom: 3.18245 at 95 %
    found = stats.interval([1.0, 2.0, 3.0, 4.0])
    half = 3.18245 * math.sqrt(5 / 3) / 2
    assert found.mean == pytest.approx(2.5)
    assert (found.low, found.high) == pytest.approx((2.5 - half, 2.5 + half), abs=1e-4)


def test_interval_of_one_value_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        stats.interval([1.0])


@pytest.mark.parametrize("n", [2, 5, 8])
def test_sign_flip_counts_every_pattern(n):
    d = np.random.default_rng(n).normal(0.5, 1, n)
    extreme = sum(abs(np.dot(signs, d)) >= abs(d.sum()) - 1e-9 for signs in itertools.product((-1, 1), repeat=n))
    assert stats.sign_flip(d) == extreme / 2**n


def test_sign_flip_at_its_ends():
    assert stats.sign_flip([0.1] * 8) == 2 / 2**8
    assert stats.sign_flip([0.0] * 8) == 1
    assert stats.sign_flip([0.3, -0.3]) == 1


def test_sign_flip_takes_ties_despite_rounding():
    # 0.1 + 0.2 + 0.3 in another order is another float
    assert stats.sign_flip([0.1, 0.2, 0.3]) == stats.sign_flip([0.3, 0.2, 0.1]) == 2 / 8


def test_holm_by_hand():
    assert stats.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert stats.holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}
    assert stats.holm({}) == {}


def test_detectable_effect_is_detected_four_times_in_five():
    rng = np.random.default_rng(0)
    d = rng.normal(0, 1, 8)
    d = (d - d.mean()) / d.std(ddof=1)
    effect = stats.detectable(d)
    draws = rng.normal(effect, 1, (20_000, 8))
    t = draws.mean(1) / (draws.std(1, ddof=1) / math.sqrt(8))
    assert np.mean(abs(t) > 2.36462) == pytest.approx(0.8, abs=0.015)


def test_equivalence_needs_the_whole_interval_inside_the_margin():
    baseline = [0.7, 0.71, 0.69, 0.7]
    near = [b + shift for b, shift in zip(baseline, (0.001, -0.001, 0.002, 0.0))]
    noisy = [b + shift for b, shift in zip(baseline, (0.06, -0.06, 0.05, -0.05))]
    assert stats.compare(near, baseline, 0.02).equivalent
    assert not stats.compare(noisy, baseline, 0.02).equivalent
    assert not stats.compare([b + 0.03 for b in near], baseline, 0.02).equivalent


def test_compare_needs_pairs():
    with pytest.raises(ValueError):
        stats.compare([0.1, 0.2], [0.1], 0.02)
