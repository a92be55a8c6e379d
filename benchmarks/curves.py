"""The loss curves of `python -m benchmarks.trainer ROWS parity`, as MLflow runs and as a figure.

    python -m benchmarks.curves [benchmarks/parity.csv]

Records one run a column in the experiment trainer-parity at MLFLOW_TRACKING_URI (sqlite:///mlflow.db), and writes the
figure to docs/images.
"""

import os
import sys
from pathlib import Path

WINDOW = 20  # steps of a moving mean; a single batch's loss moves by more than any two paths differ


def read(path: Path) -> dict[str, list[float]]:
    """name of the path -> its loss at every step; the first is the reference."""
    names, *steps = (line.split(",") for line in path.read_text(encoding="utf-8").splitlines())
    return {name: [float(x) for x in column] for name, column in zip(names, zip(*steps, strict=True), strict=True)}


def smooth(losses: list[float]) -> list[float]:
    return [sum(losses[i - WINDOW : i]) / WINDOW for i in range(WINDOW, len(losses) + 1)]


def against(curves: dict[str, list[float]]) -> dict[str, list[float]]:
    """Percent by which each path's mean of the last WINDOW steps is above the reference's, from step WINDOW on."""
    (_, reference), *others = ((name, smooth(losses)) for name, losses in curves.items())
    return {name: [100 * (x / r - 1) for x, r in zip(losses, reference, strict=True)] for name, losses in others}


def record(curves: dict[str, list[float]]) -> None:
    import mlflow
    from mlflow.entities import Metric

    mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"))
    mlflow.set_experiment("trainer-parity")
    differences, client = against(curves), mlflow.MlflowClient()
    for name, losses in curves.items():
        with mlflow.start_run(run_name=name) as run:
            points = [Metric("loss", x, 0, step) for step, x in enumerate(losses, 1)]
            points += [
                Metric("percent_above_reference", x, 0, step)
                for step, x in enumerate(differences.get(name, []), WINDOW)
            ]
            client.log_batch(run.info.run_id, metrics=points)


def draw(curves: dict[str, list[float]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for name, losses in curves.items():
        left.plot(range(1, len(losses) + 1), losses, linewidth=1, label=name)
    left.set(xlabel="step", ylabel="loss, nats per token", title="300 steps of 110M from one seed")
    left.legend(fontsize=7)
    right.plot([], [])  # the reference's colour
    for name, difference in against(curves).items():
        right.plot(range(WINDOW, WINDOW + len(difference)), difference, linewidth=1, label=name)
    right.axhline(0, color="black", linewidth=0.5)
    right.set(xlabel="step", ylabel="%", title=f"above fp32 eager, mean of {WINDOW} steps")
    figure.savefig(path, dpi=110)


def main() -> None:
    if len(sys.argv) > 2 or sys.argv[1:] in (["-h"], ["--help"]):
        sys.exit(__doc__)
    path = Path(sys.argv[1]) if len(sys.argv) == 2 else Path(__file__).with_name("parity.csv")
    try:
        curves = read(path)
    except (OSError, ValueError) as e:
        sys.exit(f"{path}: no curves there ({e}); `python -m benchmarks.trainer ROWS parity` writes them")
    record(curves)
    draw(curves, Path(__file__).resolve().parents[1] / "docs" / "images" / f"{path.stem}.png")
    for name, difference in against(curves).items():
        print(f"{name:<20} {difference[-1]:+.2f} % at the end, at most {max(map(abs, difference)):.2f} % on the way")


if __name__ == "__main__":
    main()
