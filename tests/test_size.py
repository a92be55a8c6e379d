"""Both directions of a budget that fits neither data nor batch are told right, before anything trains."""

import math
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.contract.errors import UserError
from stages.contract.params import Params, load_params
from stages.scaling.budget import check_budget, warning_of
from stages.size import plan_of


@pytest.mark.parametrize(
    ("budget", "tokens", "batch", "says"),
    [
        (1e6, 600_000, "auto", "Raise budget_flops"),
        (1e20, 600_000, "auto", "too large for the data"),
        (1e40, 600_000, "auto", "too large for the data"),
        (1e308, 1e13, "auto", "too large for the data"),
        (1e14, 2000, "auto", "too large for the data"),
        (1.4e12, 600_000, 10**9, "lower sizing.batch_tokens to 2,400,000 or less"),
        (1.4e12, 100, "auto", "lower pack.row_tokens to 400 or less"),
        (1.4e12, 3, "auto", "raise sizing.max_epochs"),
        (1e30, math.inf, "auto", "too large for any model"),
    ],
)
def test_budget_that_does_not_fit_says_which_way(budget, tokens, batch, says):
    with pytest.raises(UserError, match=says) as error:
        plan_of(with_budget(budget, batch_tokens=batch), 2048, tokens)
    assert ("Raise" in str(error.value)) == (says == "Raise budget_flops")
    assert "\n" not in str(error.value)


def with_budget(flops: float, **sizing: object) -> Params:
    params = load_params()
    derived = {"tokens_per_parameter": 20.0, "head_dim": "auto", "batch_tokens": "auto", "learning_rate": "auto"}
    changed = params.sizing.model_copy(update=derived | sizing)
    return params.model_copy(update={"budget_flops": flops, "sizing": changed})


@settings(max_examples=12, deadline=None)
@given(st.floats(0, 30), st.floats(0, 13))
@example(3, 6)
@example(20, 6)
def test_named_budget_is_possible_and_the_next_is_not(flops, tokens):
    """In two digits: the nearest on the side of the impossible one."""
    try:
        plan_of(with_budget(10**flops), 2048, 10**tokens)
    except UserError as error:
        named = re.search(r"budget_flops to ([\d.e+]+) .* or (more|less)", str(error))
    else:
        return
    if named:
        value, away = float(named[1]), 0.9 if named[2] == "more" else 1.15
        plan_of(with_budget(value), 2048, 10**tokens)
        with pytest.raises(UserError):
            plan_of(with_budget(value * away), 2048, 10**tokens)


def test_budget_impossible_for_any_corpus_is_refused_early():
    check_budget(with_budget(1.4e12))
    for flops, says in ((1e3, "Raise budget_flops to"), (1e29, "Lower budget_flops to")):
        with pytest.raises(UserError, match=says):
            check_budget(with_budget(flops))


@pytest.mark.parametrize(
    ("flops", "tokens", "ratio", "says"),
    [
        (1e17, 1e10, 20, ""),
        (1e17, 1e10, 5, "Raise sizing.tokens_per_parameter"),
        (1e15, 1e10, 5, ""),
        (1e17, 3e7, 20, "Add data, or lower budget_flops"),
    ],
)
def test_few_tokens_a_parameter_are_warned_of(flops, tokens, ratio, says):
    params = with_budget(flops, tokens_per_parameter=ratio)
    warning = warning_of(params, plan_of(params, 2048, tokens))
    assert says in warning and bool(says) == bool(warning)
