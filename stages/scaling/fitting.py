"""Scaling laws fitted to measured losses: L(N, D) = E + A·N^-a + B·D^-b, and the frontier law E + A·C^-c.

Exponents are searched; for each pair, the coefficients are a non-negative least-squares problem, which has one
minimum. A search over all five at once is worse conditioned by ten orders of magnitude (Open-Athena/
scaling-law-analysis: 3.5e11 against 11). Intervals are the business of `forecast`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.scaling import laws

Floats = npt.NDArray[np.float64]

SAME_BUDGET = 1.2  # runs within this factor share a budget
# Weak prior on the exponents: the published ones, a standard deviation of half an e-fold each. Three rungs do not
# determine five numbers; on a hundred points it changes nothing.
EXPONENTS, EXPONENT_SPREAD = np.log([laws.ALPHA, laws.BETA]), 0.5
RANGE = 2.0  # e-folds around the prior that are searched
HUBER = 1.345  # standard deviations; 95 % efficient on normal errors (Huber 1981)
LEAN = 0.25  # power of the budget in a point's weight
EXCESS = 0.03  # relative loss above the budget's best at which a point's weight is a half
NOISE, NOISE_WEIGHT = 0.002, 2.0  # relative residual expected before any is seen, worth so many points
COEFFICIENTS = 5


@dataclass(frozen=True)
class Points:
    """Finished trainings: arrays of one element a training."""

    parameters: Floats  # N of the laws
    tokens: Floats  # worth of the tokens: repeated ones discounted
    losses: Floats  # nats a token, or any other unit of loss that is positive
    budgets: Floats  # FLOPs

    @classmethod
    def of(
        cls,
        parameters: Sequence[float],
        tokens: Sequence[float],
        losses: Sequence[float],
        unique_tokens: float = np.inf,
        budgets: Sequence[float] | None = None,
    ) -> "Points":
        """Return the points of measured trainings.

        Args:
            tokens: trained on, repetitions included.
            unique_tokens: of the corpus; tokens beyond this number are discounted as repeated.
            budgets: FLOPs; None: 6·N·D.

        Raises:
            ValueError: a value is not positive and finite, or lengths differ.
        """
        n, d, loss = (np.asarray(values, dtype=np.float64) for values in (parameters, tokens, losses))
        flops = 6 * n * d if budgets is None else np.asarray(budgets, dtype=np.float64)
        columns = np.stack([n, d, loss, flops])
        if not (np.isfinite(columns).all() and (columns > 0).all()):
            raise ValueError("parameters, tokens, losses and budgets must be positive and finite")
        worth = np.array([laws.worth(tokens, unique_tokens) for tokens in d])
        return cls(n, worth, loss, flops)

    def __len__(self) -> int:
        return len(self.losses)

    def only(self, mask: npt.NDArray[np.bool_]) -> "Points":
        return Points(self.parameters[mask], self.tokens[mask], self.losses[mask], self.budgets[mask])

    @property
    def groups(self) -> npt.NDArray[np.intp]:
        """Number of each point's budget, from 0 for the smallest."""
        order = np.argsort(self.budgets, kind="stable")
        labels, label, start = np.zeros(len(self), dtype=np.intp), -1, 0.0
        for i in order:
            if label < 0 or self.budgets[i] > start * SAME_BUDGET:
                label, start = label + 1, self.budgets[i]
            labels[i] = label
        return labels

    @property
    def best(self) -> npt.NDArray[np.bool_]:
        """Mask of the lowest loss of each budget."""
        groups, mask = self.groups, np.zeros(len(self), dtype=bool)
        for group in range(groups.max() + 1):
            members = np.flatnonzero(groups == group)
            mask[members[self.losses[members].argmin()]] = True
        return mask


@dataclass(frozen=True)
class Law:
    """E + A·(N/N0)^-alpha + B·(D/D0)^-beta; N0 and D0 are the middle of the fitted points."""

    entropy: float
    a: float
    b: float
    alpha: float
    beta: float
    center: tuple[float, float]

    def loss(self, parameters: Floats | float, tokens: Floats | float) -> Floats:
        """Predicted loss; ``tokens`` are worth, see `laws.worth`."""
        n, d = np.asarray(parameters) / self.center[0], np.asarray(tokens) / self.center[1]
        return np.asarray(self.entropy + self.a * n**-self.alpha + self.b * d**-self.beta, dtype=np.float64)

    def excess(self, parameters: Floats | float, tokens: Floats | float) -> Floats:
        """Predicted loss above the best split of the same budget, relative."""
        flops = np.asarray(parameters) * np.asarray(tokens)
        split = np.asarray(parameters)[..., None] * np.geomspace(1e-3, 1e3, 121)
        best = self.loss(split, flops[..., None] / split).min(axis=-1)
        return np.asarray(self.loss(parameters, tokens) / best - 1, dtype=np.float64)


def fit_law(points: Points) -> tuple[Law, Floats]:
    """Fit L(N, D) to relative residuals. Return the law and the weight of each point, of mean about 1.

    A point counts for less the smaller its budget (a forecast goes towards large ones), the further its loss is above
    the best of its budget (the sum of two powers is an approximation that holds best near the optimum), and the larger
    its residual (Huber's weights, over the median's scale).
    """
    start = _start_weights(points)
    law = search(points, start)
    weights = start
    for _ in range(5):
        residuals = np.abs(law.loss(points.parameters, points.tokens) / points.losses - 1)
        scale = max(1e-4, 1.4826 * float(np.median(residuals)))
        weights = start * np.minimum(1, HUBER * scale / np.maximum(residuals, 1e-12))
        law = search(points, weights, law, scale)
    return law, weights


def _start_weights(points: Points) -> Floats:
    lean = (points.budgets / points.budgets.max()) ** LEAN
    groups = points.groups
    lowest = points.losses[points.best][np.argsort(groups[points.best])][groups]
    weights = lean / (1 + ((points.losses / lowest - 1) / EXCESS) ** 2)
    return np.asarray(weights / weights.mean(), dtype=np.float64)


def search(points: Points, weights: Floats, near: Law | None = None, noise: float = NOISE) -> Law:
    """Return the law of least weighted squares, exponents held by the prior.

    Args:
        near: a law to start from; None: the best of a grid of exponents.
        noise: standard deviation of a relative residual; it sets the weight of the prior.
    """
    from scipy.optimize import minimize, nnls

    n, d = points.parameters, points.tokens
    center = (float(np.exp(np.log(n).mean())), float(np.exp(np.log(d).mean())))
    log_n, log_d = np.log(n / center[0]), np.log(d / center[1])
    root = np.sqrt(weights)
    scaled = root / points.losses

    def solve(exponents: Floats) -> tuple[Floats, float]:
        alpha, beta = np.exp(exponents)
        columns = np.stack([scaled, np.exp(-alpha * log_n) * scaled, np.exp(-beta * log_d) * scaled], axis=1)
        coefficients, norm = nnls(columns, root)
        return coefficients, norm**2

    def cost(exponents: Floats) -> float:
        offset = np.asarray(exponents) - EXPONENTS
        if np.abs(offset).max() > RANGE:
            return np.inf
        return float(solve(exponents)[1] + noise**2 * ((offset / EXPONENT_SPREAD) ** 2).sum())

    if near is None:
        steps = np.linspace(-RANGE, RANGE, 13)
        start = min((EXPONENTS + np.array([i, j]) for i in steps for j in steps), key=cost)
    else:
        start = np.log([near.alpha, near.beta])
    simplex = start + np.array([[0, 0], [0.1, 0], [0, 0.1]])
    options = {"xatol": 1e-3, "fatol": 1e-12, "initial_simplex": simplex}
    exponents = minimize(cost, start, method="Nelder-Mead", options=options).x
    (entropy, a, b), _ = solve(exponents)
    alpha, beta = np.exp(exponents)
    return Law(float(entropy), float(a), float(b), float(alpha), float(beta), center)


def noise_of(points: Points, law: Law, weights: Floats) -> float:
    """Return the standard deviation of a relative residual, shrunk towards NOISE where points are few."""
    residuals = law.loss(points.parameters, points.tokens) / points.losses - 1
    squares = float((weights * residuals**2).sum() / weights.sum()) * len(points)
    free = max(0, len(points) - COEFFICIENTS)
    return float(np.sqrt((squares + NOISE_WEIGHT * NOISE**2) / (free + NOISE_WEIGHT)))


def fit_frontier(points: Points) -> Callable[[Floats], Floats]:
    """Fit E + A·C^-c to the lowest loss of each budget. Return the law, a function of the budget in FLOPs."""
    from scipy.optimize import minimize_scalar, nnls

    best = points.only(points.best)
    center = float(np.exp(np.log(best.budgets).mean()))
    prior = math.log(laws.ALPHA * laws.BETA / (laws.ALPHA + laws.BETA))  # of a budget that is split well

    def solve(exponent: float) -> tuple[Floats, float]:
        power = (best.budgets / center) ** -math.exp(exponent)
        coefficients, norm = nnls(np.stack([1 / best.losses, power / best.losses], axis=1), np.ones(len(best)))
        return coefficients, norm**2

    def cost(exponent: float) -> float:
        return solve(exponent)[1] + (NOISE * (exponent - prior) / EXPONENT_SPREAD) ** 2

    exponent = minimize_scalar(cost, bounds=(prior - RANGE, prior + RANGE), method="bounded").x
    (entropy, a), _ = solve(exponent)
    return lambda budgets: np.asarray(entropy + a * (budgets / center) ** -math.exp(exponent), dtype=np.float64)
