"""Points of a ladder: finished trainings with shares of the budget, from which the target's loss is forecast."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from stages.contract.errors import UserError
from stages.contract.params import Rung
from stages.scaling import laws
from stages.scaling.fitting import Points
from stages.scaling.forecast import FEWEST_BUDGETS, Forecaster, fit_forecaster
from stages.scaling.plan import Plan

LADDER, POINT = Path("out/ladder"), "point.json"
FORECAST = Path("out/forecast/forecast.json")


@dataclass(frozen=True)
class Point:
    """A rung that was trained."""

    share: float  # of budget_flops, as in sizing.rungs
    tokens_per_parameter: float  # as in sizing.rungs
    parameters: int
    matmul_parameters: int  # N of the laws
    tokens: int  # trained on, repetitions included
    unique_tokens: float  # of the data
    worth_tokens: float  # D of the laws: repeated tokens discounted
    flops: float
    validation_loss: float  # nats a token

    @classmethod
    def of(cls, rung: Rung, plan: Plan, validation_loss: float) -> "Point":
        """Return the point of a training by ``plan`` that ended with ``validation_loss``."""
        return cls(
            rung.share, rung.tokens_per_parameter, plan.parameters, plan.matmul_parameters, plan.tokens,
            plan.unique_tokens, laws.worth(plan.tokens, plan.unique_tokens), plan.flops, validation_loss,
        )  # fmt: skip

    def write(self, folder: Path) -> None:
        """Write the point to ``folder``."""
        (folder / POINT).write_text(json.dumps(asdict(self), indent=2, sort_keys=True) + "\n")


def read_points(rungs: Sequence[Rung], ladder: Path = LADDER) -> list[Point]:
    """Return the points of ``rungs`` in ``ladder``, by budget; folders of rungs from before are passed over.

    Raises:
        UserError: a file is no point of this version.
    """
    wanted = {(rung.share, rung.tokens_per_parameter) for rung in rungs}
    points = [point for point in _points(ladder) if (point.share, point.tokens_per_parameter) in wanted]
    return sorted(points, key=lambda point: (point.flops, point.tokens))


def _points(ladder: Path) -> Iterator[Point]:
    for path in sorted(ladder.glob(f"*/{POINT}")):
        try:
            yield TypeAdapter(Point).validate_json(path.read_bytes())
        except ValidationError:
            raise UserError(
                f"{path} is no point of this version's ladder. Run it again: dvc repro --force ladder."
            ) from None


@dataclass(frozen=True)
class Prediction:
    """The forecast of the planned training, out/forecast/forecast.json; without one, ``reason`` says why."""

    rungs: int  # that it is made of
    flops_share: float  # all rungs over the target
    largest_share: float  # the largest rung over the target
    loss: float | None  # nats a token
    low: float | None  # of the 90 % interval, as high
    high: float | None
    reason: str

    def write(self, path: Path) -> None:
        """Write the forecast to ``path``."""
        path.write_text(json.dumps(asdict(self), indent=2, sort_keys=True) + "\n")

    @classmethod
    def read(cls, path: Path = FORECAST) -> "Prediction":
        """Read the forecast from ``path``."""
        return TypeAdapter(cls).validate_json(path.read_bytes())

    def figures(self) -> dict[str, float]:
        """Return the numbers, as metrics."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, int | float)}

    def line(self) -> str:
        """Return the forecast, or why there is none."""
        if self.loss is None:
            return f"no forecast: {self.reason}"
        return (
            f"predicted loss {self.loss:.3f}, 90 % interval {self.low:.3f} to {self.high:.3f}, from {self.rungs} "
            f"rungs; the largest has {self.largest_share:.1%} of the target's FLOPs, all have {self.flops_share:.1%}"
        )


def fit_ladder(points: Sequence[Point]) -> Forecaster | None:
    """Return a forecaster fitted to ``points``; None for points of too few budgets."""
    measured = Points.of(
        [point.matmul_parameters for point in points],
        [point.worth_tokens for point in points],
        [point.validation_loss for point in points],
        budgets=[point.flops for point in points],
    )
    enough = len(points) > 0 and measured.groups.max() + 1 >= FEWEST_BUDGETS
    return fit_forecaster(measured) if enough else None


def predict(points: Sequence[Point], forecaster: Forecaster | None, plan: Plan) -> Prediction:
    """Return what ``forecaster``, fitted to ``points``, predicts of ``plan``; without one, why."""
    flops = [point.flops for point in points]
    shares = sum(flops) / plan.flops, max(flops, default=0.0) / plan.flops
    if forecaster is None:
        reason = f"it needs rungs of {FEWEST_BUDGETS} budgets, a fifth apart or more; {len(points)} were trained"
        return Prediction(len(points), *shares, None, None, None, reason)
    worth = laws.worth(plan.tokens, plan.unique_tokens)
    found = forecaster.predict(plan.matmul_parameters, worth, plan.flops)
    return Prediction(len(points), *shares, round(found.loss, 6), round(found.low, 6), round(found.high, 6), "")
