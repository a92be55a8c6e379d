"""Intervals of measured figures: the median of repeated pairs, and the mean of paired differences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stages.evaluation.paired import paired_difference

CONFIDENCE = 0.99  # an interval without zero is a difference with p < 0.01


@dataclass(frozen=True)
class Measured:
    """Figure of a measurement in the unit of its claim's metric.

    Args:
        low, high: its interval, of ``CONFIDENCE`` where the samples allow it.
        p: probability of such a difference by chance; None: not tested.
        samples: number of pairs or seeds.
        details: what the report shows beside it: absolute figures, curves.
    """

    value: float
    low: float
    high: float
    p: float | None = None
    samples: int = 1
    details: dict[str, Any] = field(default_factory=dict)


def exact(value: float, **details: Any) -> Measured:
    """Return a figure that is counted, or the same at every repetition."""
    return Measured(value, value, value, details=details)


def median_interval(samples: Sequence[float], **details: Any) -> Measured:
    """Return the median and its interval between two order statistics, whatever the distribution.

    The median lies below the k-th smallest of n samples with the binomial probability of fewer than k heads in n
    throws. Few samples reach no 99 %: their interval is the whole range.
    """
    from scipy.stats import binom

    ordered, n = sorted(samples), len(samples)
    below = max(0, int(binom.ppf((1 - CONFIDENCE) / 2, n, 0.5)) - 1)
    return Measured(float(np.median(ordered)), ordered[below], ordered[n - 1 - below], samples=n, details=details)


def paired_interval(before: Sequence[float], after: Sequence[float], **details: Any) -> Measured:
    """Return the mean of after - before over the same seeds, its t-interval and its p-value (paired t-test)."""
    from scipy.stats import t

    n = len(before)
    mean, error = paired_difference(np.asarray(before), np.asarray(after))
    if n < 2:
        return Measured(mean, -math.inf, math.inf, samples=n, details=details)
    reach = error * float(t.ppf((1 + CONFIDENCE) / 2, n - 1))
    p = float(2 * t.sf(abs(mean) / error, n - 1)) if error else 0.0 if mean else 1.0
    return Measured(mean, mean - reach, mean + reach, p, n, details)
