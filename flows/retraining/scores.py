"""Read each metric of the gate from the eval stage's outs: a score for every held-out example."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from stages.contract.errors import UserError
from stages.contract.tracking.spool import read_object

MEASURE = "eval"  # the stage that measures
FINAL = "dpo"  # the model that is promoted


class Score(NamedTuple):
    """An example's total, higher is better, and its weight: bytes, tokens, or 1. NaN: a number is missing."""

    total: float
    weight: float = 1.0


Scores = dict[str, Score]  # by example; the same keys only for the same examples


@dataclass(frozen=True)
class Metric:
    """A metric of the gate: a model's figure is the sum of its totals over the sum of their weights, times ``sign``."""

    judges: tuple[str, ...]  # the sources of new data that it is for
    sign: float  # -1: lower is better
    read: Callable[[Path], Scores]  # from the outs of eval at a repository's root


def _bits_per_byte(root: Path) -> Scores:
    rows = enumerate(_rows(root, "documents"))
    return {f"{i} {row['source']}": Score(-_number(row[FINAL]) / math.log(2), row["bytes"]) for i, row in rows}


def _assistant_loss(root: Path) -> Scores:
    rows = enumerate(_rows(root, "conversations"))
    return {f"{i}": Score(-_number(row[FINAL]), row["tokens"]) for i, row in rows if row["tokens"]}


def _preferences(root: Path) -> Scores:
    rows = [(i, row) for i, row in enumerate(_rows(root, "pairs")) if "dropped" not in row]
    return {f"{i} {row['id']}": Score(_prefers(row.get(FINAL))) for i, row in rows}


METRICS = {
    "bits_per_byte": Metric(("pretrain", "quality"), -1.0, _bits_per_byte),  # of held-out documents
    "assistant_loss": Metric(("sft",), -1.0, _assistant_loss),  # nats a token of held-out conversations
    "preferences": Metric(("preferences",), 1.0, _preferences),  # share of held-out pairs
}


def gate_metric(name: str) -> Metric:
    """Return the metric ``name``: one of METRICS, or tasks.TASK.NAME, a metric of an lm-eval task."""
    if name in METRICS:
        return METRICS[name]
    task, _, key = name.removeprefix("tasks.").rpartition(".")

    def read(root: Path) -> Scores:
        rows = [row for row in _rows(root, "tasks") if (row["model"], row["task"]) == (FINAL, task)]
        return {f"{i} {row['id']}": Score(_number(row.get(key))) for i, row in enumerate(rows)}

    return Metric((), 1.0, read)


def scores(root: Path, name: str) -> Scores:
    """Return the scores of the metric ``name``; empty if no example was measured.

    Raises UserError if a file of the eval stage is missing or cannot be read.
    """
    try:
        return gate_metric(name).read(root)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"the figures of stage {MEASURE} cannot be read: {type(e).__name__}: {e}") from None


def figure(measured: Scores, name: str) -> float:
    """Return the figure of ``measured`` in the metric's own sign; NaN without examples."""
    weight = math.fsum(score.weight for score in measured.values())
    total = math.fsum(score.total for score in measured.values())
    return gate_metric(name).sign * total / weight if weight else math.nan


def headline(root: Path) -> dict[str, float]:
    """Return the few figures that `dvc metrics` shows of the eval stage; none if it wrote none."""
    figures = read_object(root / "reports" / MEASURE / "headline.json")
    return {name: value for name, value in figures.items() if isinstance(value, int | float)}


def _rows(root: Path, name: str) -> list[dict[str, Any]]:
    text = (root / "out" / MEASURE / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _prefers(pair: object) -> float:
    chosen, rejected = map(_number, pair) if isinstance(pair, list) and len(pair) == 2 else (math.nan, math.nan)
    return float(chosen > rejected) if math.isfinite(chosen) and math.isfinite(rejected) else math.nan


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
