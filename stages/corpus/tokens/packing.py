"""Pack documents into rows of fixed length: best-fit decreasing, no token lost, only long documents cut.

Ding et al. 2024, arXiv 2404.10830. A document longer than a row is cut into whole rows and a rest.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import types

from stages.corpus.text.kernels import kernel
from stages.corpus.tokens.best_fit import by_key, plan_rows
from stages.corpus.tokens.packed_rows import Rows

SLICE = 2**20  # bytes of rows that a thread makes at a time: the size of a processor's cache


def framed(
    tokens: np.ndarray, lengths: np.ndarray, begin: int, end: int, dtype: type[np.unsignedinteger]
) -> tuple[np.ndarray, np.ndarray]:
    """Put the token ``begin`` before and ``end`` after each document; return tokens as ``dtype``, and lengths."""
    out = np.empty(len(tokens) + 2 * len(lengths), dtype)
    _frame(tokens, lengths, begin, end, out)
    return out, lengths + 2


class Arrangement(NamedTuple):
    """The place of each piece of a document; pieces are in the order of the rows.

    ``starts`` and ``pieces`` int64 (pieces,): the first token of each, and its number of tokens; ``bounds`` int64
    (R + 1,): row r has the pieces bounds[r] to bounds[r + 1]; ``filled`` int32 (R,): tokens of each row.
    """

    starts: np.ndarray
    pieces: np.ndarray
    bounds: np.ndarray
    filled: np.ndarray

    @property
    def segments(self) -> np.ndarray:
        """Return the number of pieces in each row, int64 (R,)."""
        return np.diff(self.bounds)


def arrange(lengths: np.ndarray, row_tokens: int, seed: int) -> Arrangement:
    """Arrange documents of ``lengths`` (int64 tokens, none 0) in rows of ``row_tokens``, shuffled by ``seed``."""
    pieces = cut(lengths, row_tokens)
    row, count = plan_rows(pieces, row_tokens)
    place = np.empty(count, np.int64)
    # Raw bits of PCG64 are the same in every numpy version.
    place[np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")] = np.arange(count)
    order, bounds = by_key(place[row], count)
    starts, pieces = (np.cumsum(pieces) - pieces)[order], pieces[order]
    filled = np.diff(np.append(0, np.cumsum(pieces))[bounds]).astype(np.int32)
    return Arrangement(starts, pieces, bounds, filled)


def pack(tokens: np.ndarray, lengths: np.ndarray, row_tokens: int, pad: int, seed: int) -> Rows:
    """Pack documents in memory into rows, shuffled by ``seed``.

    Args:
        tokens: unsigned integers, all documents back to back.
        lengths: int64 (documents,), tokens of each, none 0.
        row_tokens: T.
        pad: token id for the unfilled end of a row.
    """
    plan = arrange(lengths, row_tokens, seed)
    rows = np.empty((len(plan.filled), row_tokens), tokens.dtype)

    def fill(first: int, last: int) -> None:
        _fill(tokens, plan.starts, plan.pieces, plan.bounds[first : last + 1], pad, rows[first:last])

    _in_slices(fill, len(rows), SLICE // (row_tokens * tokens.itemsize))
    return Rows(rows, _cu_seqlens(plan, 0, len(rows), row_tokens, _boundaries(plan, row_tokens)), plan.filled)


def _boundaries(plan: Arrangement, row_tokens: int) -> int:
    """Return the largest number of boundaries of a row: the starts of its segments, padding included, and its end."""
    return 1 + int((plan.segments + (plan.filled < row_tokens)).max(initial=0))


def _cu_seqlens(plan: Arrangement, first: int, last: int, row_tokens: int, boundaries: int) -> np.ndarray:
    """Return cu_seqlens of rows ``first`` to ``last``."""
    out = np.full((last - first, boundaries), row_tokens, np.int32)
    _bound(plan.pieces, plan.bounds[first : last + 1], out)
    return out


def _in_slices(work: Callable[[int, int], None], rows: int, step: int) -> None:
    """Run ``work(first, last)`` for all rows, about ``step`` at a time, in threads."""
    step, threads = max(1, step), len(os.sched_getaffinity(0))
    firsts = iter(range(0, rows, step))  # an idle thread takes the next one

    def run(_: int) -> None:
        for first in firsts:
            work(first, min(rows, first + step))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, range(threads)))


def cut(lengths: np.ndarray, row_tokens: int) -> np.ndarray:
    """Cut documents above ``row_tokens`` into whole rows and a rest; return the pieces' lengths, int64, in order."""
    whole, rest = np.divmod(lengths, row_tokens)
    count = whole + (rest > 0)
    pieces = np.full(int(count.sum()), row_tokens, np.int64)
    last = np.cumsum(count) - 1
    pieces[last[rest > 0]] = rest[rest > 0]
    return pieces


@kernel
def _frame(tokens: np.ndarray, lengths: np.ndarray, begin: int, end: int, out: np.ndarray) -> None:
    source = at = 0
    for length in lengths:
        out[at], out[at + 1 + length] = begin, end
        document, framed = tokens[source : source + length], out[at + 1 : at + 1 + length]
        for k in range(length):
            framed[k] = document[k]
        source += length
        at += length + 2


@kernel
def _fill(
    tokens: np.ndarray, starts: np.ndarray, pieces: np.ndarray, bounds: np.ndarray, pad: int, rows: np.ndarray
) -> None:
    for r in range(rows.shape[0]):
        row, at = rows[r], 0
        for p in range(bounds[r], bounds[r + 1]):
            piece, place = tokens[starts[p] : starts[p] + pieces[p]], row[at : at + pieces[p]]
            for k in range(piece.shape[0]):
                place[k] = piece[k]
            at += pieces[p]
        row[at:] = pad


_pread = types.ExternalFunction("pread", types.intp(types.intc, types.intp, types.uintp, types.int64))


@kernel
def _read(file: int, starts: np.ndarray, pieces: np.ndarray, bounds: np.ndarray, pad: int, rows: np.ndarray) -> bool:
    """As `_fill`, of tokens in the open ``file``; whether all of them could be read."""
    size = rows.itemsize
    for r in range(rows.shape[0]):
        row, at = rows[r], 0
        for p in range(bounds[r], bounds[r + 1]):
            target, done, wanted = row[at:].ctypes.data, 0, pieces[p] * size
            while done < wanted:
                read = _pread(file, target + done, wanted - done, starts[p] * size + done)
                if read <= 0:
                    return False
                done += read
            at += pieces[p]
        row[at:] = pad
    return True


@kernel
def _bound(pieces: np.ndarray, bounds: np.ndarray, cu_seqlens: np.ndarray) -> None:
    """Write the boundaries of each row; entries after the last one stay as they are."""
    for r in range(cu_seqlens.shape[0]):
        at = cu_seqlens[r, 0] = 0
        for p in range(bounds[r], bounds[r + 1]):
            at += pieces[p]
            cu_seqlens[r, p - bounds[r] + 1] = at


def save_packed(
    folder: Path, file: Path, dtype: type[np.unsignedinteger], plan: Arrangement, row_tokens: int, pad: int,
    slice_bytes: int = SLICE,
) -> None:  # fmt: skip
    """Pack documents on disk into rows on disk: `pack`, then `save_rows`, for corpora larger than memory.

    Each piece is read directly to its place. A memory map would read, and keep, far more of the file than the piece.

    Args:
        folder: of the rows.
        file: tokens of ``dtype``, all documents back to back.
        plan, row_tokens, pad: see `arrange` and `pack`.
        slice_bytes: of rows in memory in each thread; there is one for each core.

    Raises:
        OSError: ``file`` cannot be read to its end, or the rows cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count, boundaries = len(plan.filled), _boundaries(plan, row_tokens)
    np.save(folder / "filled.npy", plan.filled, allow_pickle=False)
    with (
        file.open("rb") as source,
        _npy(folder / "tokens.npy", dtype, (count, row_tokens)) as write_tokens,
        _npy(folder / "cu_seqlens.npy", np.int32, (count, boundaries)) as write_cu_seqlens,
    ):

        def save(first: int, last: int) -> None:
            rows, bounds = np.empty((last - first, row_tokens), dtype), plan.bounds[first : last + 1]
            if not _read(source.fileno(), plan.starts, plan.pieces, bounds, pad, rows):
                raise OSError(f"{file}: could not be read to its end.")
            write_tokens(first, rows)
            write_cu_seqlens(first, _cu_seqlens(plan, first, last, row_tokens, boundaries))

        _in_slices(save, count, slice_bytes // (row_tokens * np.dtype(dtype).itemsize))


@contextmanager
def _npy(path: Path, dtype: type[np.integer], shape: tuple[int, ...]) -> Iterator[Callable[[int, np.ndarray], None]]:
    """Create the array file ``path``; yield ``write(first, rows)``, which any thread may call."""
    with path.open("wb", buffering=0) as f:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(f, header)
        begin = f.tell()

        def write(first: int, rows: np.ndarray) -> None:
            left, at = rows.reshape(-1).view(np.uint8).data, begin + first * rows[0].nbytes
            while left:
                done = os.pwrite(f.fileno(), left, at)
                left, at = left[done:], at + done

        yield write
