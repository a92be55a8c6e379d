"""Steps saved, by curves whose answer is known."""

import math

import pytest

from verdict.measuring.progress import steps_saved

SLOW = [[step, 8 - step / 100] for step in range(0, 401, 20)]
FAST = [[step, 8 - step / 50] for step in range(0, 401, 20)]


def test_the_faster_one_needs_so_many_times_fewer():
    one = steps_saved([SLOW] * 3, [FAST] * 3)
    assert (one.value, one.low, one.high, one.samples) == (*[pytest.approx(2.0)] * 3, 3)
    assert steps_saved([FAST] * 3, [SLOW] * 3).value == pytest.approx(0.5)
    assert steps_saved([SLOW] * 3, [SLOW] * 3).value == 1


def test_a_loss_between_two_points_is_interpolated():
    assert steps_saved([[[100, 5.0], [200, 4.5]]], [[[100, 5.0], [200, 4.0]]]).value == pytest.approx(200 / 150)


def test_seeds_give_the_interval():
    one = steps_saved([SLOW, SLOW, SLOW], [FAST, SLOW, FAST])
    assert one.value == pytest.approx(2 ** (2 / 3))
    assert one.low < one.value < one.high


def test_a_single_seed_says_nothing_about_steps():
    one = steps_saved([SLOW], [FAST])
    assert (one.low, one.high > 1e300, math.isfinite(one.high)) == (0.0, True, True)
