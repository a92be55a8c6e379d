"""Forecasts and rules of `stages.scaling` against published trainings.

    python -m benchmarks.forecasts FOLDER

FOLDER has CSV files of two kinds, told apart by their columns:
  experiment, params, tokens, budget, loss [, outlier]   IsoFLOP points: the largest budgets are left out of the fit
  N, D, lr, bs, loss or "smooth loss"                    grids of rate and batch (sequences of 2,048 tokens)
"""

import csv
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from stages.scaling import laws
from stages.scaling.fitting import Floats, Points, fit_frontier
from stages.scaling.forecast import Forecaster, fit_forecaster

FEWEST_FITTED = 4  # budgets: with three, no error has been seen before the interval is drawn
GRID_POINTS = 40
SEQUENCE = 2048
NEAR_BEST = 1.01  # times the lowest loss: points of a grid that a parabola is fitted to
Grids = dict[tuple[float, float], Floats]  # (N, D) -> rows of rate, batch in tokens, loss
Rule = Callable[[float, float], tuple[float, float]]  # N, D -> rate, batch in tokens


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) == 2 else None
    if folder is None or not folder.is_dir():
        print(f"No folder of published points{f' at {folder}' if folder else ''}: {__doc__.split(chr(10))[2].strip()}")
        return 2
    rows = [row for path in sorted(folder.glob("*.csv")) for row in csv.DictReader(path.open(encoding="utf-8"))]
    forecasts([row for row in rows if "budget" in row])
    rates([row for row in rows if "lr" in row])
    return 0


def forecasts(rows: list[dict[str, str]]) -> None:
    """Print the errors of every cut and how often the interval held."""
    print(
        f"Forecasts from the smaller budgets, {FEWEST_FITTED} at least. Errors in %; 90 %: share of held-out trainings"
    )
    print("inside the interval; best: each held-out budget's lowest loss; width: of the interval's half there, mean")
    print(f"{'experiment':44}{'fitted to':>10}{'points':>7}{'held out':>9}{'mean':>7}{'max':>6}{'90 %':>6}"
          f"{'best':>7}{'90 %':>6}{'width':>7}{'frontier':>9}")  # fmt: skip
    inside: list[bool] = []
    inside_best: list[bool] = []
    for name in dict.fromkeys(row["experiment"] for row in rows):
        points = _points([row for row in rows if row["experiment"] == name])
        for cut in range(FEWEST_FITTED, int(points.groups.max()) + 1):
            fitted, held = points.only(points.groups < cut), points.only(points.groups >= cut)
            hits, line = _held_out(fit_forecaster(fitted), fitted, held)
            inside += list(hits)
            inside_best += list(hits[held.best])
            print(f"{name[:43]:44}{fitted.budgets.max():10.0e}{len(fitted):7}{line}", flush=True)
    if inside:
        print(f"Inside the 90 % interval: {_share(inside)} held-out trainings, {_share(inside_best)} best of a budget")


def _points(rows: list[dict[str, str]]) -> Points:
    kept = [row for row in rows if row.get("outlier", "False") != "True"]
    n, d, loss, budget = ([float(row[key]) for row in kept] for key in ("params", "tokens", "loss", "budget"))
    return Points.of(n, d, loss, budgets=budget)


def _held_out(forecaster: Forecaster, fitted: Points, held: Points) -> tuple[np.ndarray, str]:
    forecast = [forecaster.predict(*row) for row in zip(held.parameters, held.tokens, held.budgets, strict=True)]
    loss, low, high = (np.array([getattr(f, key) for f in forecast]) for key in ("loss", "low", "high"))
    errors, best = 100 * np.abs(loss / held.losses - 1), held.best
    hits = (low <= held.losses) & (held.losses <= high)
    frontier = 100 * np.abs(fit_frontier(fitted)(held.budgets[best]) / held.losses[best] - 1)
    width = 100 * (high / loss - 1)[best].mean()
    return hits, (
        f"{len(held):9}{errors.mean():7.3f}{errors.max():6.2f}{hits.mean():6.0%}"
        f"{errors[best].mean():7.3f}{hits[best].mean():6.0%}{width:7.2f}{frontier.mean():9.3f}"
    )


def _share(hits: list[bool]) -> str:
    return f"{sum(hits)} of {len(hits)} ({np.mean(hits):.1%})"


def rates(rows: list[dict[str, str]]) -> None:
    """Print how far above each grid's lowest loss the rule for rate and batch lands."""
    grids = dict(_grids(rows))
    if not grids:
        return
    optima = {key: optimum(grid) for key, grid in grids.items()}
    print(f"\nRate and batch, {len(grids)} grids of {GRID_POINTS} points or more: % above the grid's lowest loss")
    print(f"{'N':>8}{'D':>8}{'points':>8}{'rule':>8}{'nearest':>9}{'refitted':>10}{'DeepSeek':>10}")
    results = []
    for key, grid in grids.items():
        others = {other: best for other, best in optima.items() if other != key}
        landed = [
            *landing(grid, *step_law(*key)),
            landing(grid, *refitted(others)(*key))[0] if len(others) > 2 else np.nan,
            landing(grid, *deepseek(*key))[0],
        ]
        results.append(landed)
        print(f"{key[0]:8.2g}{key[1]:8.2g}{len(grid):8}" + "".join(map("{:{}.3f}".format, landed, (8, 9, 10, 10))))
    print(f"{'mean':>8}{'':16}" + "".join(map("{:{}.3f}".format, np.mean(results, axis=0), (8, 9, 10, 10))))
    print(
        "rule: Step-law's, interpolated in the grid (nearest: its nearest point), whose authors fitted it to all grids;"
    )
    print("refitted: the same form, fitted here to the other grids only")
    print(
        "Best rate at a given batch: it changes with batch^{:.2f} below the rule's, ^{:.2f} above".format(
            *slopes(grids)
        )
    )


def _grids(rows: list[dict[str, str]]) -> Iterator[tuple[tuple[float, float], Floats]]:
    grids: dict[tuple[float, float], list[tuple[float, float, float]]] = defaultdict(list)
    for row in rows:
        loss = float(row.get("smooth loss") or row["loss"])
        if np.isfinite(loss):
            grids[float(row["N"]), float(row["D"])].append((float(row["lr"]), float(row["bs"]) * SEQUENCE, loss))
    return ((key, np.array(grid)) for key, grid in sorted(grids.items()) if len(grid) >= GRID_POINTS)


def step_law(parameters: float, tokens: float) -> tuple[float, float]:
    batch = laws.batch_tokens(tokens)
    return laws.learning_rate(parameters, tokens, batch), batch


def deepseek(parameters: float, tokens: float) -> tuple[float, float]:
    """DeepSeek LLM (arXiv:2401.02954), eq. 1: the rule of version 0.1."""
    flops = 6 * parameters * tokens
    return 0.3118 * flops**-0.1250, 0.2920 * flops**0.3271


def landing(grid: Floats, rate: float, batch: float) -> tuple[float, float]:
    """Percent above the lowest loss of the grid: interpolated between its points, and at the nearest of them."""
    from scipy.interpolate import LinearNDInterpolator

    places, target = np.log(grid[:, :2]), np.log([rate, batch])
    nearest = grid[(((places - target) / places.std(axis=0)) ** 2).sum(axis=1).argmin(), 2]
    between = LinearNDInterpolator(places, grid[:, 2], rescale=True)(target)[0]
    lowest = grid[:, 2].min()
    return 100 * ((between if np.isfinite(between) else nearest) / lowest - 1), 100 * (nearest / lowest - 1)


def optimum(grid: Floats) -> Floats:
    """Log of the rate and batch at the bottom of a paraboloid through the points near the best."""
    near = grid[grid[:, 2] < NEAR_BEST * grid[:, 2].min()]
    x, y = np.log(near[:, :2]).T
    columns = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)
    _, a, b, aa, bb, ab = np.linalg.lstsq(columns, near[:, 2], rcond=None)[0]
    return np.asarray(np.linalg.solve([[2 * aa, ab], [ab, 2 * bb]], [-a, -b]))


def refitted(optima: dict[tuple[float, float], Floats]) -> Rule:
    """Step-law's form, rate in N and D and batch in D, through the optima of other grids."""
    places, (rates, batches) = np.log(list(optima)), np.array(list(optima.values())).T
    ones = np.ones(len(places))
    rate = np.linalg.lstsq(np.column_stack([ones, places]), rates, rcond=None)[0]
    batch = np.linalg.lstsq(np.column_stack([ones, places[:, 1]]), batches, rcond=None)[0]
    return lambda n, d: (float(np.exp(rate @ [1, np.log(n), np.log(d)])), float(np.exp(batch @ [1, np.log(d)])))


def slopes(grids: Grids) -> tuple[float, float]:
    """Exponents of the batch in the best rate at that batch, below and above the rule's batch."""
    found = []
    for key, grid in grids.items():
        rate, batch = step_law(*key)
        for size in np.unique(grid[:, 1]):
            row = grid[grid[:, 1] == size]
            row = row[row[:, 2] < NEAR_BEST * row[:, 2].min()]
            if len(row) >= 3:
                c, b, _ = np.polyfit(np.log(row[:, 0]), row[:, 2], 2)
                if c > 0:
                    found.append((np.log(size / batch), -b / 2 / c - np.log(rate)))
    x, y = np.array(found).T
    return tuple(float(np.polyfit(x[side], y[side], 1)[0]) for side in (x < 0, x > 0))  # type: ignore[return-value]


if __name__ == "__main__":
    sys.exit(main())
