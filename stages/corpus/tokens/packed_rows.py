"""Save and load packed rows: tokens, segment boundaries, labels. `packing` makes them."""

from pathlib import Path
from typing import NamedTuple, TypeVar, overload

import numpy as np

IGNORED = -100  # the label that transformers' losses skip
_Kind = TypeVar("_Kind", bound=NamedTuple)


class Rows(NamedTuple):
    """Packed rows; R rows of T tokens, at most M segments in a row.

    ``tokens`` uint16 or uint32 (R, T); ``cu_seqlens`` int32 (R, M + 1): segment k of row r is
    tokens[r, cu_seqlens[r, k]:cu_seqlens[r, k + 1]], and T is repeated behind the last boundary;
    ``filled`` int32 (R,): the real tokens of a row. The rest of a row holds the pad token and is a segment of
    its own, so attention never mixes it with a document; the loss leaves it out by ``filled`` (see `labels`).
    """

    tokens: np.ndarray
    cu_seqlens: np.ndarray
    filled: np.ndarray


def save_rows(rows: NamedTuple, folder: Path) -> None:
    """Write a file for each array of ``rows``: tokens.npy, cu_seqlens.npy, filled.npy and any others."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in rows._asdict().items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


@overload
def load_rows(folder: str | Path) -> Rows: ...


@overload
def load_rows(folder: str | Path, kind: type[_Kind]) -> _Kind: ...


def load_rows(folder: str | Path, kind: type[NamedTuple] = Rows) -> NamedTuple:
    """Load the rows that `save_rows` wrote, of a ``kind``, as read-only memory maps."""
    return kind(*(np.load(Path(folder) / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in kind._fields))


def position_ids(cu_seqlens: np.ndarray, row_tokens: int) -> np.ndarray:
    """Return each token's place in its segment, int64 (T,); ``cu_seqlens`` is one row, (M + 1,)."""
    bounds = np.asarray(cu_seqlens, np.int64)
    return np.arange(row_tokens) - np.repeat(bounds[:-1], np.diff(bounds))


def labels(tokens: np.ndarray, cu_seqlens: np.ndarray, filled: int) -> np.ndarray:
    """Return labels (int64) for a model that shifts them: IGNORED at each segment's first token and in padding.

    A segment's first token would be predicted from the end of another document.
    """
    out = np.asarray(tokens).astype(np.int64)
    bounds = np.asarray(cu_seqlens)
    out[bounds[bounds < len(out)]] = IGNORED
    out[filled:] = IGNORED
    return out
