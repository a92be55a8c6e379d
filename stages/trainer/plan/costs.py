"""Predict hours, energy and money of a training on a table of GPUs. For people: no stage reads it.

The table is params/gpus.csv. Its prices are examples: put yours there.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.contract.errors import UserError

PRICES = Path("params/gpus.csv")
UTILIZATION = 0.4  # of the peak, where none was measured: what a good trainer reaches on an H100


@dataclass(frozen=True)
class Gpu:
    """A row of the table."""

    name: str
    bf16_tflops: float  # dense peak
    watts: float  # of the board, at its limit
    usd_per_hour: float


def read_gpus(path: Path = PRICES) -> list[Gpu]:
    """Return the rows of the table; none if there is no file.

    Raises:
        UserError: a row lacks a number.
    """
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        return [_gpu(row, f"{path}:{rows.line_num}") for row in rows]


def _gpu(row: dict[str, str], where: str) -> Gpu:
    try:
        gpu = Gpu(row["name"], *(float(row[name]) for name in ("bf16_tflops", "watts", "usd_per_hour")))
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{where}: not name, bf16_tflops, watts, usd_per_hour. Write a number for the last three."
        ) from None
    if not gpu.bf16_tflops > 0:
        raise UserError(f"{where}: bf16_tflops is {gpu.bf16_tflops:g}; it must be above 0.")
    return gpu


def cost_table(flops: float, gpus: Sequence[Gpu], measured: float | None) -> str:
    """Return a line for each of ``gpus``: hours, energy and money of a training on one of them.

    Args:
        flops: of the training, attention counted in full.
        gpus: the table's rows.
        measured: share of the peak that was reached here; None: UTILIZATION.
    """
    share = measured or UTILIZATION
    source = "measured here" if measured else "assumed"
    lines = [f"  cost           on one GPU at {share:.0%} of its peak ({source}); prices: {PRICES}"]
    lines += [f"    {'':<14}{'hours':>10}{'kWh':>12}{'USD':>12}"] if gpus else []
    for gpu in gpus:
        hours = flops / (share * gpu.bf16_tflops * 1e12) / 3600
        energy, money = hours * gpu.watts / 1000, hours * gpu.usd_per_hour
        lines.append(f"    {gpu.name:<14}{hours:>10,.3g}{energy:>12,.3g}{money:>12,.2f}")
    return "\n".join(lines)
