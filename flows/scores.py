"""What the gate compares: the final model's score on every held-out example, as the eval stage left them."""

import json
import math
from pathlib import Path

from stages.contract.errors import UserError

MEASURE = "eval"  # the stage that measures, and where its figures lie
FINAL = "dpo"  # the model that is promoted, and its name in these figures
SCALES = {"bits_per_byte": -1.0}  # of metrics of which less is better


def scores(root: Path, metric: str) -> dict[str, float]:
    """example -> score, higher is better; NaN where a number is missing, nothing where none was measured.

    ``metric`` is one of
        bits_per_byte      one example a source of data.validation, minus its bits per byte
        preferences        one a held-out pair, 1 if the chosen answer is the likelier
        tasks.TASK.NAME    one an example of an lm-eval task, e.g. tasks.quiz_capitals.acc

    Keys are positions and names: two sets of scores have the same keys only if they come from the same examples.

    Raises:
        UserError: a file of the eval stage is missing or cannot be read.
    """
    try:
        if metric == "bits_per_byte":
            figures = json.loads((root / "reports" / MEASURE / "metrics.json").read_text(encoding="utf-8"))
            found = figures.get("bits_per_byte", {}).get(FINAL, {})
            return {source: -_number(value) for source, value in found.items() if source != "overall"}
        if metric == "preferences":
            rows = _rows(root / "out" / MEASURE / "pairs.jsonl")
            return {f"{i} {row['id']}": _prefers(row.get(FINAL)) for i, row in enumerate(rows)}
        task, _, name = metric.removeprefix("tasks.").rpartition(".")
        rows = [r for r in _rows(root / "out" / MEASURE / "tasks.jsonl") if (r["model"], r["task"]) == (FINAL, task)]
        return {f"{i} {row['id']}": _number(row.get(name)) for i, row in enumerate(rows)}
    except (OSError, ValueError, KeyError, AttributeError) as e:
        raise UserError(f"the figures of stage {MEASURE} cannot be read: {type(e).__name__}: {e}") from None


def mean(found: dict[str, float], metric: str) -> float:
    """The scores' mean in the metric's own sign."""
    return SCALES.get(metric, 1.0) * math.fsum(found.values()) / len(found) if found else math.nan


def headline(root: Path) -> dict[str, float]:
    """The few figures that `dvc metrics` shows of the eval stage; none if it wrote none."""
    path = root / "reports" / MEASURE / "headline.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _prefers(pair) -> float:
    chosen, rejected = map(_number, pair) if isinstance(pair, list) and len(pair) == 2 else (math.nan, math.nan)
    return float(chosen > rejected) if math.isfinite(chosen) and math.isfinite(rejected) else math.nan


def _number(value) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
