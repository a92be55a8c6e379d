"""Steps that a technique saves: how many times fewer it needs to reach the other's final loss."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from verdict.measuring.intervals import Measured, paired_interval

Curve = Sequence[Sequence[float]]  # (steps, held-out loss), the last at the end of training


def steps_saved(before: Sequence[Curve], after: Sequence[Curve], **details: Any) -> Measured:
    """Return the geometric mean over seeds of how many times fewer steps ``after`` needs, and its t-interval.

    Both have schedules of equal length. The faster one is read in the middle of its schedule, where the rate and with
    it the loss are still high: the figure is a lower bound of what a schedule cut to size would save.
    """
    logs = [math.log(_times_fewer(*pair)) for pair in zip(before, after, strict=True)]
    one = paired_interval([0.0] * len(logs), logs)
    low, value, high = (math.exp(min(x, 700.0)) for x in (one.low, one.value, one.high))
    return Measured(value, low, high, one.p, one.samples, details)


def _times_fewer(before: Curve, after: Curve) -> float:
    """Return the steps of ``before`` over those in which ``after`` gets as low; where it never does, the reverse."""
    if after[-1][1] <= before[-1][1]:
        return before[-1][0] / _reaches(after, before[-1][1])
    return _reaches(before, after[-1][1]) / after[-1][0]


def _reaches(curve: Curve, loss: float) -> float:
    """Return the step, interpolated, at which the lowest loss so far is ``loss``."""
    steps, losses = np.asarray(curve, np.float64).T
    lowest = np.minimum.accumulate(losses)
    k = int(np.argmax(lowest <= loss))
    if k == 0:
        return float(max(1.0, steps[0]))
    share = (lowest[k - 1] - loss) / (lowest[k - 1] - lowest[k])
    return float(steps[k - 1] + share * (steps[k] - steps[k - 1]))
