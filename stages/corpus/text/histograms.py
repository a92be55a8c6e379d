"""Write histograms as CSV files for `dvc plots`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_histogram(path: Path, unit: str, series: Mapping[str, np.ndarray]) -> None:
    """Write one row for each power of two between the least and the greatest value: lower bound, count in each series.

    Args:
        path: a CSV file with the header ``unit`` and the names of the series.
        unit: of the values.
        series: integers >= 0 by name; 0 counts with 1.
    """
    bins = {name: np.log2(np.maximum(values, 1)).astype(np.int64) for name, values in series.items()}
    filled = [b for b in bins.values() if len(b)]
    first = min((int(b.min()) for b in filled), default=0)
    last = max((int(b.max()) for b in filled), default=-1)
    counts = [np.bincount(b - first, minlength=last - first + 1) for b in bins.values()]
    rows = [[2 ** (first + k), *(int(count[k]) for count in counts)] for k in range(last - first + 1)]
    write_rows(path, [unit, *series], rows)


def write_rows(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    """Write a CSV file of numbers and plain names; floats to six digits."""
    lines = [",".join(header)]
    lines += [",".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
