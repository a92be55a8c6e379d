"""Intervals against scipy, and how often they hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from verdict.measuring.intervals import CONFIDENCE, exact, median_interval, paired_interval


def test_paired_interval_is_that_of_scipy():
    rng = np.random.default_rng(0)
    before = rng.normal(4, 1, 5)
    after = before + rng.normal(0.1, 0.05, 5)
    measured, theirs = paired_interval(before, after), stats.ttest_rel(after, before)
    interval = theirs.confidence_interval(CONFIDENCE)
    assert (measured.low, measured.high, measured.p) == pytest.approx((interval.low, interval.high, theirs.pvalue))
    assert measured.samples == 5


def test_an_interval_without_zero_is_a_p_below_one_percent():
    rng = np.random.default_rng(1)
    for _ in range(200):
        one = paired_interval(rng.normal(0, 1, 4), rng.normal(1, 1, 4))
        assert (one.low > 0 or one.high < 0) == (one.p < 1 - CONFIDENCE)


def test_a_single_seed_says_nothing():
    one = paired_interval([1.0], [2.0])
    assert (one.low, one.high, one.p) == (-math.inf, math.inf, None)


def test_median_interval_holds_the_truth():
    rng = np.random.default_rng(2)
    held = [(m := median_interval(rng.exponential(1, 15))).low <= math.log(2) <= m.high for _ in range(500)]
    assert np.mean(held) > CONFIDENCE - 0.02


def test_few_samples_have_their_range():
    assert (median_interval([3.0, 1.0, 2.0]).low, median_interval([3.0, 1.0, 2.0]).high) == (1.0, 3.0)


def test_a_counted_figure_has_no_width():
    one = exact(0.5)
    assert one.low == one.value == one.high
