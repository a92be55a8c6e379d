"""Forecast the loss of a training from smaller ones, with a 90 % interval.

    error² = noise² + doubt² + growth² · distance

noise: scatter of the points around the law, larger away from the best split of a budget. doubt: spread of the
forecasts of laws fitted to reweighted points. growth: lack of fit, which wanders like a random walk over decades of
budget beyond the fit. Noise and doubt cannot know it, so the largest budgets of the fit are left out in turn and the
errors that follow are measured.
"""

from dataclasses import dataclass

import numpy as np

from stages.scaling.fitting import EXCESS, Floats, Law, Points, fit_law, noise_of, search

LEVEL = 0.90
REPLICATES, ROLLED_REPLICATES = 40, 12
FEWEST_BUDGETS = 3
ORIGINS = 6  # rolling origins at most, the latest
# Lack of fit expected before any is measured: 1 % after a decade, worth so many budgets. Published: OLMo-ladder 3.8 %
# after one, Delphi 0.2 to 0.5 % after two.
GROWTH, GROWTH_WEIGHT = 0.01, 4.0


@dataclass(frozen=True)
class Forecast:
    """A predicted loss, with its interval."""

    loss: float
    low: float
    high: float


@dataclass(frozen=True)
class Forecaster:
    """A fitted law and its known errors."""

    law: Law
    replicates: tuple[Law, ...]
    noise: float  # relative
    growth: float  # relative, after one decade
    degrees: float  # of freedom of the interval
    largest: float  # FLOPs, of the fit

    def predict(self, parameters: float, tokens: float, budget: float | None = None) -> Forecast:
        """Return the loss of one more training and its interval.

        Args:
            tokens: worth of the tokens, see `laws.worth`.
            budget: FLOPs; None: 6·N·D.
        """
        from scipy.stats import t

        loss = float(self.law.loss(parameters, tokens))
        deviation = np.sqrt(self.variance(parameters, tokens, budget or 6 * parameters * tokens))
        spread = np.exp(t.ppf((1 + LEVEL) / 2, self.degrees) * deviation)
        return Forecast(loss, float(loss / spread), float(loss * spread))

    def variance(self, parameters: Floats | float, tokens: Floats | float, budget: Floats | float) -> Floats:
        """Return the variance of a relative error."""
        others = np.stack([np.log(law.loss(parameters, tokens)) for law in self.replicates])
        doubt = others.var(axis=0, ddof=1)
        noise = self.noise**2 * (1 + (self.law.excess(parameters, tokens) / EXCESS) ** 2)
        return np.asarray(noise + doubt + self.growth**2 * distance(budget, self.largest))


def distance(budget: Floats | float, largest: float) -> Floats:
    """Decades of budget beyond the largest fitted one."""
    return np.maximum(0, np.log10(np.asarray(budget) / largest))


def fit_forecaster(points: Points) -> Forecaster:
    """Fit law, replicates and growth of the lack of fit to ``points``.

    Raises:
        ValueError: fewer than three budgets.
    """
    groups = points.groups
    count = int(groups.max()) + 1
    if count < FEWEST_BUDGETS:
        raise ValueError(f"a forecast needs at least {FEWEST_BUDGETS} budgets, not {count}")
    growth, degrees = GROWTH**2 * GROWTH_WEIGHT, GROWTH_WEIGHT
    rolled = []
    for origin in range(max(FEWEST_BUDGETS, count - ORIGINS), count):
        earlier = _fit(points.only(groups < origin), GROWTH, GROWTH_WEIGHT, ROLLED_REPLICATES)
        for group in range(origin, count):
            rolled.append(_unexplained(earlier, points.only(groups == group)))
    if rolled:
        seen = count - max(FEWEST_BUDGETS, count - ORIGINS)
        squares, decades = np.sum(rolled, axis=0)
        growth += seen * max(0.0, float(squares / decades))
        degrees += seen
    return _fit(points, float(np.sqrt(growth / degrees)), degrees, REPLICATES)


def _unexplained(earlier: Forecaster, points: Points) -> tuple[float, float]:
    """Mean square of the errors on one later budget, less what noise and doubt explain; its distance."""
    errors = np.log(earlier.law.loss(points.parameters, points.tokens) / points.losses)
    explained = earlier.variance(points.parameters, points.tokens, earlier.largest)
    return float((errors**2 - explained).mean()), float(distance(points.budgets, earlier.largest).mean())


def _fit(points: Points, growth: float, degrees: float, replicates: int) -> Forecaster:
    law, weights = fit_law(points)
    noise = noise_of(points, law, weights)
    # Bayesian bootstrap (Rubin 1981): random weights instead of drawn points, so that a ladder of five rungs never
    # loses the rung that determines an exponent.
    random = np.random.default_rng(0)
    others = tuple(
        search(points, weights * random.exponential(size=len(points)), law, noise) for _ in range(replicates)
    )
    return Forecaster(law, others, noise, growth, degrees, float(points.budgets.max()))
