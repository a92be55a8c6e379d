"""History of a training: one entry per logged step, with nothing that depends on the machine; its curves as CSV."""

import csv
import json
import math
from pathlib import Path
from typing import Any

History = list[dict[str, Any]]
FILE = "history.json"
CURVE_POINTS = 200
# Values that depend on the machine, or restart with a resume, stay out of files that DVC tracks.
VOLATILE = ("runtime", "per_second", "step_time", "num_tokens", "epoch", "total_flos")


def from_log(log: History, first_step: int) -> History:
    """Return the history of a Trainer's ``log``; ``first_step`` steps came before it."""
    stable = [{k: v for k, v in entry.items() if not any(word in k for word in VOLATILE)} for entry in log]
    return [entry | {"step": entry["step"] + first_step} for entry in stable]


def save_history(history: History, folder: Path) -> None:
    """Write ``history`` to ``folder``."""
    (folder / FILE).write_text(json.dumps(history))


def load_history(folder: Path) -> History:
    """Read the history from ``folder``."""
    return json.loads((folder / FILE).read_text())


def last_step(history: History) -> int:
    """Return the number of steps of a training; its last is always logged."""
    return max(entry["step"] for entry in history)


def final(history: History, column: str, share: float = 0.05) -> float:
    """Return the mean of ``column`` over the last ``share`` of the steps."""
    values = [entry[column] for entry in history if column in entry]
    tail = values[-max(1, round(len(values) * share)) :]
    return round(sum(tail) / len(tail), 6)


def write_curve(path: Path, history: History, columns: list[str]) -> None:
    """Write a plot of at most CURVE_POINTS rows: step, and the mean of each column over the steps since the last row.

    A column that this history lacks is empty. Of the others, an entry has all or does not count.
    """
    known = {c for c in columns if any(c in entry for entry in history)}
    steps = [entry for entry in history if known and entry.keys() >= known | {"loss"}]
    width = max(1, math.ceil(len(steps) / CURVE_POINTS))
    windows = [steps[i : i + width] for i in range(0, len(steps), width)]
    _write(path, columns, [[window[-1]["step"], *(_mean(window, c) for c in columns)] for window in windows])


def _mean(entries: History, column: str) -> str:
    values = [entry[column] for entry in entries if column in entry]
    return f"{sum(values) / len(values):.6g}" if values else ""


def write_points(path: Path, history: History, column: str) -> None:
    """Write a plot of every entry that has ``column``."""
    _write(path, [column], [[entry["step"], f"{entry[column]:.6g}"] for entry in history if column in entry])


def _write(path: Path, columns: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["step", *columns], *rows])
