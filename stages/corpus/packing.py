"""Documents into rows of equal length: best-fit decreasing, nothing lost, documents cut only where they must be.

Ding et al. 2024, arXiv 2404.10830. A document longer than a row is cut into whole rows and a rest.
"""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages.corpus.kernels import kernel

IGNORED = -100  # the label that transformers' losses skip


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


def framed(tokens: np.ndarray, lengths: np.ndarray, mark: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, lengths) with ``mark`` before and behind every document; arguments as :func:`pack`."""
    ends = np.cumsum(lengths)
    edges = np.sort(np.concatenate([ends - lengths, ends]), kind="stable")
    return np.insert(tokens, edges, mark), lengths + 2


class Arrangement(NamedTuple):
    """Which piece of which document goes where. ``starts`` and ``pieces`` int64 (pieces,): where each begins in the
    tokens, and how many it has; ``row`` int64 (pieces,); ``order`` int64 (pieces,): by row; ``filled`` int32 (R,) and
    ``segments`` int64 (R,): each row's tokens and pieces."""

    starts: np.ndarray
    pieces: np.ndarray
    row: np.ndarray
    order: np.ndarray
    filled: np.ndarray
    segments: np.ndarray


def arrange(lengths: np.ndarray, row_tokens: int, seed: int) -> Arrangement:
    """Documents of ``lengths`` (int64, none 0) in rows of ``row_tokens``, whose order is mixed by ``seed``."""
    pieces = cut(lengths, row_tokens)
    row, count = plan(pieces, row_tokens)
    place = np.empty(count, np.int64)
    # Raw bits of PCG64 are the same in every numpy version.
    place[np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")] = np.arange(count)
    row = place[row]
    filled = np.bincount(row, weights=pieces, minlength=count).astype(np.int32)
    segments = np.bincount(row, minlength=count)
    return Arrangement(np.cumsum(pieces) - pieces, pieces, row, np.argsort(row, kind="stable"), filled, segments)


def pack(tokens: np.ndarray, lengths: np.ndarray, row_tokens: int, pad: int, seed: int) -> Rows:
    """Rows in an order mixed by ``seed``.

    Args:
        tokens: unsigned integers, all documents back to back.
        lengths: int64 (documents,), tokens of each, none 0.
        row_tokens: T.
        pad: token id for the unfilled end of a row.
    """
    found = arrange(lengths, row_tokens, seed)
    return _rows(tokens, found, 0, len(found.filled), row_tokens, pad)


def _rows(tokens: np.ndarray, found: Arrangement, first: int, last: int, row_tokens: int, pad: int) -> Rows:
    """Rows ``first`` to ``last`` of the arrangement."""
    most = int((found.segments + (found.filled < row_tokens)).max(initial=0))  # of all rows, so that slices match
    out = np.full((last - first, row_tokens), pad, tokens.dtype)
    cu_seqlens = np.full((last - first, most + 1), row_tokens, np.int32)
    _fill(tokens, found.starts, found.pieces, found.row, _of_rows(found, first, last), first, out, cu_seqlens)
    return Rows(out, cu_seqlens, found.filled[first:last])


def _of_rows(found: Arrangement, first: int, last: int) -> np.ndarray:
    """The pieces in rows ``first`` to ``last``."""
    before, inside = found.segments[:first].sum(), found.segments[first:last].sum()
    return found.order[before : before + inside]


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
    order = np.argsort(-pieces, kind="stable")
    return _best_fit(pieces, order, row_tokens)


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


@kernel
def _trailing_zeros(bits):
    n = 0
    while bits & np.uint64(1) == 0:
        bits >>= np.uint64(1)
        n += 1
    return n


@kernel
def _fill(tokens, starts, pieces, row, order, first, out, cu_seqlens):
    current, at, segment = -1, 0, 0
    for p in order:
        if row[p] - first != current:
            current, at, segment = row[p] - first, 0, 0
            cu_seqlens[current, 0] = 0
        for k in range(pieces[p]):
            out[current, at + k] = tokens[starts[p] + k]
        at += pieces[p]
        segment += 1
        cu_seqlens[current, segment] = at


def save_rows(rows: NamedTuple, folder: Path) -> None:
    """A file for each array: tokens.npy, cu_seqlens.npy, filled.npy and what else such rows have."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in rows._asdict().items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


def save_packed(
    folder: Path, file: Path, dtype: type, found: Arrangement, row_tokens: int, pad: int, slice_bytes: int = 2**24
) -> None:
    """`save_rows` of what `pack` makes of the tokens in ``file``, with ``slice_bytes`` of them in memory at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    count, step = len(found.filled), max(1, slice_bytes // (row_tokens * np.dtype(dtype).itemsize))
    with ExitStack() as stack:
        source = stack.enter_context(file.open("rb", buffering=0))
        files = {name: stack.enter_context((folder / f"{name}.npy").open("wb")) for name in Rows._fields}
        for first in range(0, max(1, count), step):
            last = min(count, first + step)
            tokens, here = _gathered(source.fileno(), dtype, found, first, last)
            rows = _rows(tokens, here, first, last, row_tokens, pad)
            for name, array in rows._asdict().items():
                if first == 0:
                    shape, kind = (count, *array.shape[1:]), np.lib.format.dtype_to_descr(array.dtype)
                    header = {"descr": kind, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(files[name], header)
                array.tofile(files[name])


def _gathered(file: int, dtype: type, found: Arrangement, first: int, last: int) -> tuple[np.ndarray, Arrangement]:
    """The tokens of rows ``first`` to ``last``, read piece by piece, and the arrangement with where they now begin.

    Not by a memory map: around each piece it would bring, and keep, far more of the file than the piece.
    """
    some = _of_rows(found, first, last)
    ends = np.cumsum(found.pieces[some])
    starts = found.starts.copy()
    starts[some] = ends - found.pieces[some]
    tokens = np.empty(int(ends[-1]) if len(ends) else 0, dtype)
    for at, end, origin in zip(starts[some].tolist(), ends.tolist(), found.starts[some].tolist(), strict=True):
        os.preadv(file, [tokens[at:end]], origin * tokens.itemsize)
    return tokens, found._replace(starts=starts)


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
