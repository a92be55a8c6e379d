import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.scaling import laws

FLOPS = st.floats(1e9, 1e26)


@given(FLOPS, st.floats(0.1, 1000), st.floats(1e3, 1e15))
def test_whole_budget_is_spent_on_the_tokens_there_are(flops, ratio, max_tokens):
    parameters, tokens = laws.split_budget(flops, ratio, max_tokens)
    assert math.isclose(6 * parameters * tokens, flops, rel_tol=1e-9)
    assert tokens <= max_tokens
    if tokens < max_tokens:
        assert math.isclose(tokens, ratio * parameters, rel_tol=1e-9)


def test_chinchilla_70b():
    """Hoffmann et al. 2022: 5.76e23 FLOPs, 70B parameters, 1.4T tokens."""
    parameters, tokens = laws.split_budget(5.76e23, 20, 1e15)
    assert parameters == pytest.approx(70e9, rel=0.02)
    assert tokens == pytest.approx(1.4e12, rel=0.02)


def test_fit_has_its_optimum_near_twenty_tokens_per_parameter():
    """Besiroglu et al. 2024: the corrected constants agree with Hoffmann's other two approaches."""
    flops = 5.76e23
    best = min((10 ** (9 + i / 50) for i in range(150)), key=lambda n: laws.predicted_loss(n, flops / (6 * n), 1e15))
    assert 12 < flops / (6 * best) / best < 40


@given(st.floats(1e5, 1e10), st.floats(1e6, 1e9))
def test_repeated_data_is_worth_less_than_new_data(parameters, unique):
    once = laws.predicted_loss(parameters, unique, unique)
    repeated = laws.predicted_loss(parameters, 8 * unique, unique)
    fresh = laws.predicted_loss(parameters, 8 * unique, 8 * unique)
    assert fresh < repeated < once


def test_step_law_values():
    """github.com/step-law/steplaw, data/dense_lr_bs_loss.csv: best of the grid at 1.07e9 parameters, 2e10 tokens."""
    assert laws.batch_tokens(2e10) == pytest.approx(5.2e5, rel=0.2)
    assert laws.learning_rate(1.07e9, 2e10, 5.2e5) == pytest.approx(1.38e-3, rel=0.4)


@given(st.floats(1e4, 1e12), st.floats(1e5, 1e14), st.floats(1e2, 1e9))
def test_rate_is_limited_and_smaller_batches_lower_it(parameters, tokens, batch):
    rate = laws.learning_rate(parameters, tokens, batch)
    assert 0 < rate <= laws.HIGHEST_RATE
    assert rate <= laws.learning_rate(parameters, tokens, 2 * batch) <= laws.HIGHEST_RATE
    assert laws.learning_rate(parameters, tokens, 1e18) == laws.learning_rate(parameters, tokens, 1e19)
