import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_wsd_schedule
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

from stages.trainer.optim import schedules
from stages.trainer.optim.schedules import constant, cosine, wsd

SHARE = st.floats(0, 1)
# (steps, warmup_steps, decay_steps) of a run in which the warmup ends before the decay begins.
RUN = st.tuples(st.integers(2, 1000), SHARE, SHARE).map(
    lambda run: (run[0], warmup := int(run[1] * (run[0] - 1)), 1 + int(run[2] * (run[0] - 1 - warmup)))
)


def curves(run, floor):
    """Every schedule's multipliers at steps 0 to ``steps``."""
    steps, warmup, decay = run
    every = range(steps + 1)
    return {
        "cosine": [cosine(i, steps, warmup, floor) for i in every],
        "wsd": [wsd(i, steps, warmup, decay, floor) for i in every],
        "constant": [constant(i, warmup) for i in every],
    }


@given(RUN, SHARE)
def test_rate_is_within_zero_and_the_peak_reached_after_warmup(run, floor):
    for curve in curves(run, floor).values():
        assert all(0 <= rate <= 1 for rate in curve)
        assert curve[run[1]] == 1


@given(RUN, SHARE)
def test_rises_from_zero_then_never_rises_again(run, floor):
    warmup = run[1]
    for curve in curves(run, floor).values():
        assert curve[: warmup + 1] == [i / max(1, warmup) for i in range(warmup)] + [1]
        assert all(a >= b for a, b in pairwise(curve[warmup:]))


@given(RUN, SHARE)
def test_ends_at_the_floor_and_stays_there(run, floor):
    steps, warmup, decay = run
    for beyond in (0, 1, 1000):
        assert cosine(steps + beyond, steps, warmup, floor) == pytest.approx(floor, abs=1e-12)
        assert wsd(steps + beyond, steps, warmup, decay, floor) == pytest.approx(floor, abs=1e-12)
        assert constant(steps + beyond, warmup) == 1


@given(RUN, SHARE)
def test_no_step_is_larger_than_the_slope_allows(run, floor):
    steps, warmup, decay = run
    slope = {"cosine": math.pi / 2 / (steps - warmup), "wsd": math.sqrt(1 / decay), "constant": 0}
    for name, curve in curves(run, floor).items():
        allowed = max(slope[name], 1 / max(1, warmup)) + 1e-9
        assert all(abs(a - b) <= allowed for a, b in pairwise(curve))


@given(st.integers(1, 500), st.integers(0, 600), st.integers(0, 600))
def test_a_warmup_that_meets_the_decay_bends_into_it(steps, warmup, decay):
    curve = [wsd(i, steps, warmup, decay) for i in range(steps + 1)]
    assert all(0 <= rate <= 1 for rate in curve)
    peak = curve.index(max(curve))
    assert curve[: peak + 1] == sorted(curve[: peak + 1])
    assert curve[peak:] == sorted(curve[peak:], reverse=True)


def optimizer():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    return torch.optim.SGD([{"params": weights[:1], "lr": 1.0}, {"params": weights[1:], "lr": 0.25}])


@pytest.mark.parametrize(("steps", "warmup"), [(1000, 100), (977, 13), (50, 0), (7, 7), (5, 9), (1, 0)])
def test_cosine_is_that_of_transformers(steps, warmup):
    """Its "cosine_with_min_lr" with a floor of a tenth; the Trainer rounds the warmup up."""
    theirs = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer(), num_warmup_steps=warmup, num_training_steps=steps, min_lr_rate=0.1
    ).lr_lambdas[0]
    assert [cosine(i, steps, warmup) for i in range(steps + 1)] == [theirs(i) for i in range(steps + 1)]


def test_wsd_is_that_of_transformers():
    theirs = get_wsd_schedule(optimizer(), 20, 50, 300, decay_type="1-sqrt").lr_lambdas[0]
    assert [wsd(i, 300, 20, 50) for i in range(301)] == pytest.approx([theirs(i) for i in range(301)], abs=1e-12)


@pytest.mark.parametrize(
    ("name", "multiplier"),
    [
        ("cosine", lambda i: cosine(i, 40, 4)),
        ("wsd", lambda i: wsd(i, 40, 4, 8)),
        ("constant", lambda i: constant(i, 4)),
    ],
)
@pytest.mark.parametrize("first", [0, 10])
def test_scheduler_scales_every_group(name, multiplier, first):
    ours = optimizer()
    schedule = schedules.scheduler(ours, name, steps=40, warmup_steps=4, decay_share=0.2, first_step=first)
    for step in range(first, 40):
        assert [group["lr"] for group in ours.param_groups] == [peak * multiplier(step) for peak in (1.0, 0.25)]
        ours.step()
        schedule.step()
