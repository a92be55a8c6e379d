"""The paired difference of two models on the same examples, and its standard error."""

import numpy as np


def paired_difference(
    before: np.ndarray, after: np.ndarray, weights: np.ndarray | None = None
) -> tuple[float, float]:  # fmt: skip
    """Return the mean of after - before over the same examples, and its standard error std / sqrt(n).

    Only examples that changed count in it (McNemar 1947), so it is smaller than that of two independent samples.
    With weights the mean is a ratio of sums, sum(after - before) / sum(weights), for totals of examples of different
    size; its standard error is the ratio estimator's (Cochran 1977, Sampling Techniques, equation 6.13).

    Args:
        before, after: the examples' scores, or totals if there are weights, shape (examples,).
        weights: the examples' sizes, bytes or tokens for example.

    Returns:
        The difference and its standard error; inf for a single example.
    """
    change = after.astype(np.float64) - before.astype(np.float64)
    n = len(change)
    if weights is None:
        return float(change.mean()), float(change.std(ddof=1) / np.sqrt(n)) if n > 1 else float("inf")
    difference = change.sum() / weights.sum()
    residuals = change - difference * weights
    stderr = np.sqrt(n / (n - 1) * (residuals**2).sum()) / weights.sum() if n > 1 else float("inf")
    return float(difference), float(stderr)
