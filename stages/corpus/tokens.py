"""The tokens of a corpus on disk, document after document, for they may be too many for memory.

A folder with tokens.bin and lengths.bin (int64, of each document); both are only ever added to.
"""

import os
from pathlib import Path

import numpy as np


def append(folder: Path, tokens: np.ndarray, counts: np.ndarray) -> None:
    """Add documents to ``folder``: their tokens back to back, and how many each has (int64)."""
    with (folder / "tokens.bin").open("ab") as f:
        tokens.tofile(f)
        f.flush()
        os.fsync(f.fileno())  # before the lengths: what they tell of is there, whatever happens
    with (folder / "lengths.bin").open("ab") as f:
        counts.tofile(f)


def begin(folder: Path, dtype: type) -> int:
    """How many documents ``folder`` has. It is made if it is not there; what a kill left half-written is cut off."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokens.bin", "lengths.bin"):
        (folder / name).touch()
    whole = lengths(folder)
    os.truncate(folder / "lengths.bin", whole.nbytes)
    os.truncate(folder / "tokens.bin", int(whole.sum()) * np.dtype(dtype).itemsize)
    return len(whole)


def lengths(folder: Path) -> np.ndarray:
    """int64 (documents,): how many tokens each has."""
    data = (folder / "lengths.bin").read_bytes()
    return np.frombuffer(data[: len(data) // 8 * 8], np.int64)
