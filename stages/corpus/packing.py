"""Documents into rows of equal length: best-fit decreasing, nothing lost, documents cut only where they must be.

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
from numba.extending import intrinsic

from stages.corpus.kernels import kernel

IGNORED = -100  # the label that transformers' losses skip
SLICE = 2**20  # bytes of rows that a thread makes at a time: what the processor's cache holds


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


def framed(tokens: np.ndarray, lengths: np.ndarray, mark: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, lengths) with ``mark`` before and behind every document, tokens as ``dtype``; arguments as `pack`."""
    out = np.empty(len(tokens) + 2 * len(lengths), dtype)
    _frame(tokens, lengths, mark, out)
    return out, lengths + 2


class Arrangement(NamedTuple):
    """Which piece of which document goes where; pieces in the order of the rows, and of their places there.

    ``starts`` and ``pieces`` int64 (pieces,): where each begins in the tokens, and how many it has; ``bounds`` int64
    (R + 1,): row r holds the pieces from bounds[r] to bounds[r + 1]; ``filled`` int32 (R,): each row's tokens.
    """

    starts: np.ndarray
    pieces: np.ndarray
    bounds: np.ndarray
    filled: np.ndarray

    @property
    def segments(self) -> np.ndarray:
        """int64 (R,): how many pieces each row holds."""
        return np.diff(self.bounds)


def arrange(lengths: np.ndarray, row_tokens: int, seed: int) -> Arrangement:
    """Documents of ``lengths`` (int64, none 0) in rows of ``row_tokens``, whose order is mixed by ``seed``."""
    pieces = cut(lengths, row_tokens)
    row, count = plan(pieces, row_tokens)
    place = np.empty(count, np.int64)
    # Raw bits of PCG64 are the same in every numpy version.
    place[np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")] = np.arange(count)
    order, bounds = _by_key(place[row], count)
    starts, pieces = (np.cumsum(pieces) - pieces)[order], pieces[order]
    filled = np.diff(np.append(0, np.cumsum(pieces))[bounds]).astype(np.int32)
    return Arrangement(starts, pieces, bounds, filled)


def pack(tokens: np.ndarray, lengths: np.ndarray, row_tokens: int, pad: int, seed: int) -> Rows:
    """Rows in an order mixed by ``seed``.

    Args:
        tokens: unsigned integers, all documents back to back.
        lengths: int64 (documents,), tokens of each, none 0.
        row_tokens: T.
        pad: token id for the unfilled end of a row.
    """
    found = arrange(lengths, row_tokens, seed)
    rows = np.empty((len(found.filled), row_tokens), tokens.dtype)

    def fill(first: int, last: int) -> None:
        _fill(tokens, found.starts, found.pieces, found.bounds[first : last + 1], pad, rows[first:last])

    _in_slices(fill, len(rows), SLICE // (row_tokens * tokens.itemsize))
    return Rows(rows, _cu_seqlens(found, 0, len(rows), row_tokens, _boundaries(found, row_tokens)), found.filled)


def _boundaries(found: Arrangement, row_tokens: int) -> int:
    """How many a row has at most: of its segments, the padding one of them, and its end."""
    return 1 + int((found.segments + (found.filled < row_tokens)).max(initial=0))


def _cu_seqlens(found: Arrangement, first: int, last: int, row_tokens: int, boundaries: int) -> np.ndarray:
    """Of rows ``first`` to ``last``."""
    out = np.full((last - first, boundaries), row_tokens, np.int32)
    _bound(found.pieces, found.bounds[first : last + 1], out)
    return out


def _in_slices(work: Callable[[int, int], None], rows: int, step: int) -> None:
    """``work(first, last)`` over all rows, about ``step`` at a time, in threads."""
    step, threads = max(1, step), len(os.sched_getaffinity(0))
    firsts = iter(range(0, rows, step))  # whichever thread is free takes the next

    def run(_: int) -> None:
        for first in firsts:
            work(first, min(rows, first + step))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, range(threads)))


def cut(lengths: np.ndarray, row_tokens: int) -> np.ndarray:
    """int64 (pieces,): the documents' lengths, those above ``row_tokens`` as whole rows and a rest, in order."""
    whole, rest = np.divmod(lengths, row_tokens)
    count = whole + (rest > 0)
    pieces = np.full(int(count.sum()), row_tokens, np.int64)
    last = np.cumsum(count) - 1
    pieces[last[rest > 0]] = rest[rest > 0]
    return pieces


def plan(pieces: np.ndarray, row_tokens: int) -> tuple[np.ndarray, int]:
    """The row of each piece (int64 (pieces,)) by best-fit decreasing, and the number of rows."""
    order, _ = _by_key(row_tokens - pieces, row_tokens)
    return _best_fit(pieces, order, row_tokens)


@kernel
def _by_key(keys, count):
    """The places of ``keys`` (below ``count``) in their order, equal ones as they stand; where those of each begin."""
    bounds = np.zeros(count + 1, np.int64)
    for key in keys:
        bounds[key + 1] += 1
    for key in range(count):
        bounds[key + 1] += bounds[key]
    order, after = np.empty(keys.shape[0], np.int64), bounds[:-1].copy()
    for place in range(keys.shape[0]):
        order[after[keys[place]]] = place
        after[keys[place]] += 1
    return order, bounds


@kernel
def _best_fit(pieces, order, capacity):
    """Each piece goes to the row with the least sufficient space, the youngest of several.

    Rows of equal space form a stack; a bit for each space with a row, and a bit for each word of bits with one
    set, find the least sufficient space in a few steps.
    """
    words = capacity // 64 + 1
    low, high = np.zeros(words, np.uint64), np.zeros(words // 64 + 1, np.uint64)
    top = np.full(capacity + 1, -1, np.int64)
    below = np.empty(pieces.shape[0], np.int64)
    row = np.empty(pieces.shape[0], np.int64)
    count = 0
    for p in order:
        space = _next(low, high, pieces[p])
        if space < 0:
            r, space = count, capacity
            count += 1
        else:
            r = top[space]
            top[space] = below[r]
            if top[space] < 0:
                low[space >> 6] &= ~(np.uint64(1) << np.uint64(space & 63))
                if low[space >> 6] == 0:
                    high[space >> 12] &= ~(np.uint64(1) << np.uint64((space >> 6) & 63))
        row[p] = r
        left = space - pieces[p]
        below[r], top[left] = top[left], r
        low[left >> 6] |= np.uint64(1) << np.uint64(left & 63)
        high[left >> 12] |= np.uint64(1) << np.uint64((left >> 6) & 63)
    return row, count


@kernel
def _next(low, high, at):
    """The least set bit of ``low`` from ``at`` on, or -1."""
    word = at >> 6
    bits = low[word] >> np.uint64(at & 63)
    if bits != 0:
        return at + _trailing_zeros(bits)
    word += 1
    group = word >> 6
    if group >= high.shape[0]:
        return -1
    bits = (high[group] >> np.uint64(word & 63)) << np.uint64(word & 63)
    while bits == 0:
        group += 1
        if group >= high.shape[0]:
            return -1
        bits = high[group]
    word = (group << 6) + _trailing_zeros(bits)
    return (word << 6) + _trailing_zeros(low[word])


@intrinsic
def _trailing_zeros(_, bits):
    """Of a uint64 that is not 0."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], context.get_constant(types.boolean, True))

    return types.int64(types.uint64), generate


@kernel
def _frame(tokens, lengths, mark, out):
    source = at = 0
    for length in lengths:
        out[at] = out[at + 1 + length] = mark
        document, framed = tokens[source : source + length], out[at + 1 : at + 1 + length]
        for k in range(length):
            framed[k] = document[k]
        source += length
        at += length + 2


@kernel
def _fill(tokens, starts, pieces, bounds, pad, rows):
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
def _read(file, starts, pieces, bounds, pad, rows):
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
def _bound(pieces, bounds, cu_seqlens):
    """What stands behind the last boundary is there already."""
    for r in range(cu_seqlens.shape[0]):
        at = cu_seqlens[r, 0] = 0
        for p in range(bounds[r], bounds[r + 1]):
            at += pieces[p]
            cu_seqlens[r, p - bounds[r] + 1] = at


def save_rows(rows: NamedTuple, folder: Path) -> None:
    """A file for each array: tokens.npy, cu_seqlens.npy, filled.npy and what else such rows have."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in rows._asdict().items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


def save_packed(
    folder: Path, file: Path, dtype: type, found: Arrangement, row_tokens: int, pad: int, slice_bytes: int = SLICE
) -> None:
    """`save_rows` of what `pack` makes of the tokens in ``file``, with ``slice_bytes`` of them in memory at a time in
    each of as many threads as there are cores.

    Each piece is read to where it belongs. Not by a memory map: around each piece it would bring, and keep, far more
    of the file than the piece.

    Raises:
        OSError: ``file`` could not be read to its end, or the rows not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count, boundaries = len(found.filled), _boundaries(found, row_tokens)
    np.save(folder / "filled.npy", found.filled, allow_pickle=False)
    with (
        file.open("rb") as source,
        _npy(folder / "tokens.npy", dtype, (count, row_tokens)) as write_tokens,
        _npy(folder / "cu_seqlens.npy", np.int32, (count, boundaries)) as write_cu_seqlens,
    ):

        def save(first: int, last: int) -> None:
            rows, bounds = np.empty((last - first, row_tokens), dtype), found.bounds[first : last + 1]
            if not _read(source.fileno(), found.starts, found.pieces, bounds, pad, rows):
                raise OSError(f"{file}: could not be read to its end.")
            write_tokens(first, rows)
            write_cu_seqlens(first, _cu_seqlens(found, first, last, row_tokens, boundaries))

        _in_slices(save, count, slice_bytes // (row_tokens * np.dtype(dtype).itemsize))


@contextmanager
def _npy(path: Path, dtype: type, shape: tuple[int, ...]) -> Iterator[Callable[[int, np.ndarray], None]]:
    """What writes some rows of the array in the file ``path``, from any thread: (first, rows)."""
    with path.open("wb", buffering=0) as f:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(f, header)
        begin = f.tell()

        def write(first: int, rows: np.ndarray) -> None:
            left, at = memoryview(rows.reshape(-1).view(np.uint8)), begin + first * rows[0].nbytes
            while left:
                done = os.pwrite(f.fileno(), left, at)
                left, at = left[done:], at + done

        yield write


def load_rows(folder: str | Path, kind: type[NamedTuple] = Rows):
    """What `save_rows` wrote, a ``kind``, as read-only memory maps."""
    return kind(*(np.load(Path(folder) / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in kind._fields))


def position_ids(cu_seqlens: np.ndarray, row_tokens: int) -> np.ndarray:
    """int64 (T,): each token's place in its segment. ``cu_seqlens`` is one row, (M + 1,)."""
    bounds = np.asarray(cu_seqlens, np.int64)
    return np.arange(row_tokens) - np.repeat(bounds[:-1], np.diff(bounds))


def labels(tokens: np.ndarray, cu_seqlens: np.ndarray, filled: int) -> np.ndarray:
    """int64 (T,) for a model that shifts labels itself: the tokens, IGNORED at each segment's first and in padding.

    A segment's first token would be predicted from the end of another document.
    """
    out = np.asarray(tokens).astype(np.int64)
    bounds = np.asarray(cu_seqlens)
    out[bounds[bounds < len(out)]] = IGNORED
    out[filled:] = IGNORED
    return out
