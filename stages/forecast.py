"""DVC stage `forecast`: out/ladder + out/size/plan.json -> out/forecast/forecast.json, the predicted loss of the model.

`pretrain` depends on out/forecast/written alone, a file that never changes: the forecast is there before the training
begins, and a rung that is added later changes the forecast without training the model again.
"""

import csv
from pathlib import Path

import numpy as np

from stages.contract import Run, run_stage
from stages.scaling import laws
from stages.scaling.forecast import Forecaster
from stages.scaling.ladder import FORECAST, Point, Prediction, fit_ladder, predict, read_points
from stages.scaling.plan import Plan

WRITTEN = "The forecast was written before the training that it is of.\n"
CURVE_POINTS = 25
HEADLINE = {"predicted": "loss"}


def main(run: Run) -> None:
    """Fit a law to the ladder's points, and predict the loss of the planned training."""
    points, plan = read_points(run.params.sizing.rungs), Plan.read()
    forecaster = fit_ladder(points)
    prediction = predict(points, forecaster, plan)
    prediction.write(run.out / FORECAST.name)
    (run.out / "written").write_text(WRITTEN)
    _write_law(run.reports / "law.csv", points, forecaster, plan, prediction)
    run.report(prediction.figures(), HEADLINE)
    print(prediction.line())


def _write_law(
    path: Path, points: list[Point], forecaster: Forecaster | None, plan: Plan, prediction: Prediction
) -> None:
    """Write the rungs, the law at the target's tokens a parameter, and the target, for a plot over budgets."""
    rows = [(point.flops, point.validation_loss, "rung") for point in points]
    if forecaster:
        ratio = plan.tokens / plan.matmul_parameters
        for flops in np.geomspace(points[0].flops, plan.flops, CURVE_POINTS):
            parameters = (flops / (6 * ratio)) ** 0.5
            worth = laws.worth(ratio * parameters, plan.unique_tokens)
            rows.append((flops, float(forecaster.law.loss(parameters, worth)), f"law, {ratio:.2g} tokens a parameter"))
        ends = {"target": prediction.loss, "target, low": prediction.low, "target, high": prediction.high}
        rows += [(plan.flops, loss, name) for name, loss in ends.items() if loss is not None]
    with path.open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["flops", "loss", "split"])
        lines.writerows((f"{flops:.6g}", f"{loss:.6f}", name) for flops, loss, name in rows)


if __name__ == "__main__":
    run_stage("forecast", main)
