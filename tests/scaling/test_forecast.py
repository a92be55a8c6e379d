"""Fitted laws recover known ones; intervals contain their forecast, widen with distance, and cover."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.scaling.fitting import Floats, Law, Points, fit_frontier, fit_law
from stages.scaling.forecast import FEWEST_BUDGETS, Forecaster, fit_forecaster

CHINCHILLA = Law(1.82, 482.0, 2085.0, 0.348, 0.366, (1.0, 1.0))
LAWS = st.builds(
    Law, st.floats(0.5, 2.5), st.floats(0.05, 0.6), st.floats(0.05, 0.6), st.floats(0.2, 0.6), st.floats(0.2, 0.6),
    st.just((3e8, 6e9)),
)  # fmt: skip


def splits(budgets: Floats, each: int = 7) -> tuple[Floats, Floats]:
    """N and D of ``each`` splits of every budget, 1 to 400 tokens a parameter."""
    flops, ratio = (grid.ravel() for grid in np.meshgrid(budgets, np.geomspace(1, 400, each)))
    parameters = np.sqrt(flops / 6 / ratio)
    return parameters, flops / 6 / parameters


def measured(law: Law, budgets: Floats, noise: float, seed: int, each: int = 7) -> Points:
    n, d = splits(budgets, each)
    scatter = np.exp(noise * np.random.default_rng(seed).standard_normal(len(n)))
    return Points.of(n, d, law.loss(n, d) * scatter)


@settings(max_examples=10, deadline=None)
@given(LAWS)
def test_known_law_is_recovered(law):
    points = measured(law, np.geomspace(1e18, 1e20, 5), noise=0, seed=0)
    fitted, _ = fit_law(points)
    far = splits(np.array([1e22]))
    assert fitted.loss(*far) == pytest.approx(law.loss(*far), rel=0.005)
    assert fitted.loss(points.parameters, points.tokens) == pytest.approx(points.losses, rel=0.001)


def test_noise_and_outliers_move_the_forecast_little():
    points = measured(CHINCHILLA, np.geomspace(1e18, 1e20, 5), noise=0.003, seed=1)
    losses = points.losses.copy()
    losses[[3, 17]] *= 1.1  # diverged
    law, weights = fit_law(Points.of(points.parameters, points.tokens, losses))
    assert weights[[3, 17]].max() < 0.1 * np.median(weights)
    far = splits(np.array([1e21]), 3)
    assert law.loss(*far) == pytest.approx(CHINCHILLA.loss(*far), rel=0.01)


@settings(max_examples=10, deadline=None)
@given(LAWS, st.integers(0, 99), st.floats(1, 1e4), st.floats(1.01, 100))
def test_more_parameters_or_tokens_never_predict_more_loss(law, seed, beyond, more):
    fitted, _ = fit_law(measured(law, np.geomspace(1e18, 1e19, 3), 0.005, seed, each=3))
    n, d = splits(np.array([1e18 * beyond]), 5)
    assert (fitted.loss(n * more, d) <= fitted.loss(n, d)).all()
    assert (fitted.loss(n, d * more) <= fitted.loss(n, d)).all()


@pytest.fixture(scope="module")
def forecaster() -> Forecaster:
    return fit_forecaster(measured(CHINCHILLA, np.geomspace(1e18, 1e20, 5), 0.003, seed=2))


@settings(max_examples=30, deadline=None)
@given(st.floats(1e17, 1e25), st.floats(1.0, 300.0))
def test_interval_contains_forecast_and_widens(forecaster, flops, ratio):
    n = np.sqrt(flops / 6 / ratio)
    near, far = (forecaster.predict(n * scale, ratio * n * scale) for scale in (1, 10))
    assert near.low < near.loss < near.high
    if flops > forecaster.largest:  # within the fit, the middle is surer than both ends
        assert far.high / far.loss > near.high / near.loss


def test_same_points_give_the_same_forecast():
    points = measured(CHINCHILLA, np.geomspace(1e18, 1e20, 4), 0.003, seed=3)
    assert fit_forecaster(points).predict(1e9, 2e10) == fit_forecaster(points).predict(1e9, 2e10)


def test_intervals_cover_on_laws_of_another_form():
    """Farseer's finding (arXiv:2506.10972): the exponent of D depends on N, which no sum of two powers follows."""
    hits = []
    for seed in range(12):
        draw = np.random.default_rng(seed)
        bend, budgets = draw.uniform(-0.015, 0.015), np.geomspace(1e18, 1e19, 4)

        def true(n: Floats, d: Floats, bend: float = bend) -> Floats:
            return np.asarray(CHINCHILLA.loss(n, d) * (1 + bend * np.log(n / 2e8) * np.log(d / 4e9) / 4))

        n, d = splits(budgets)
        losses = true(n, d) * np.exp(0.003 * draw.standard_normal(len(n)))
        fitted = fit_forecaster(Points.of(n, d, losses))
        far = splits(np.array([3e19, 1e20]), 3)
        observed = true(*far) * np.exp(0.003 * draw.standard_normal(6))
        forecasts = [fitted.predict(*pair) for pair in zip(*far, strict=True)]
        hits += [f.low <= loss <= f.high for f, loss in zip(forecasts, observed, strict=True)]
    assert len(hits) == 72
    assert 0.85 <= np.mean(hits) <= 1


def test_repeated_tokens_are_discounted():
    once, often = Points.of([1e8], [4e9], [3.0]), Points.of([1e8], [4e9], [3.0], unique_tokens=1e9)
    assert 1e9 < often.tokens[0] < once.tokens[0] == 4e9
    assert often.budgets[0] == once.budgets[0] == 6 * 1e8 * 4e9


def test_frontier_law_follows_the_best_of_each_budget():
    budgets = np.geomspace(1e18, 1e20, 5)
    points = measured(CHINCHILLA, budgets, 0, seed=0, each=41)
    frontier = fit_frontier(points)
    far = splits(np.array([1e21]), 41)
    assert float(frontier(np.array([1e21]))[0]) == pytest.approx(CHINCHILLA.loss(*far).min(), rel=0.005)


def test_budgets_are_grouped_and_the_best_of_each_is_known():
    points = Points.of([1e8] * 5, [1e9] * 5, [3, 2.9, 2.5, 2.6, 2.4], budgets=[1e18, 1.1e18, 3e18, 3e18, 1e19])
    assert points.groups.tolist() == [0, 0, 1, 1, 2]
    assert points.best.tolist() == [False, True, True, False, True]


def test_too_few_budgets_or_impossible_values_are_refused():
    with pytest.raises(ValueError, match=f"at least {FEWEST_BUDGETS} budgets, not 2"):
        fit_forecaster(measured(CHINCHILLA, np.array([1e18, 1e19]), 0, seed=0))
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="positive and finite"):
            Points.of([1e8], [1e9], [bad])
