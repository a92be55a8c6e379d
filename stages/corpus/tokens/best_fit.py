"""Plan rows by best-fit decreasing bin packing of parts of documents, in linear time.

Ding et al. 2024, arXiv 2404.10830.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numba import types
from numba.extending import intrinsic

from stages.corpus.text.kernels import kernel

if TYPE_CHECKING:
    from llvmlite.ir import IRBuilder, Value
    from numba.core.base import BaseContext
    from numba.core.typing import BaseContext as TypingContext
    from numba.core.typing import Signature


def plan_rows(pieces: np.ndarray, row_tokens: int) -> tuple[np.ndarray, int]:
    """Return the row of each piece, int64 (pieces,), and the number of rows; ``pieces``: int64, tokens of each."""
    order, _ = by_key(row_tokens - pieces, row_tokens)
    return _best_fit(pieces, order, row_tokens)


@kernel
def by_key(keys: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort ``keys`` (below ``count``) stably by counting; return their order and the bounds of each key."""
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
def _best_fit(pieces: np.ndarray, order: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """Put each piece in the row with the least sufficient space, the latest of several.

    Rows of equal space form a stack. The bit of a space is set if a row has it (``low``), and the bit of a word of
    ``low`` is set if one of its bits is (``high``): so the least sufficient space is found in a few steps.
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
def _next(low: np.ndarray, high: np.ndarray, at: int) -> int:
    """Return the least set bit of ``low`` from ``at`` on, or -1."""
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
def _trailing_zeros(_: "TypingContext", bits: types.Type) -> "tuple[Signature, Callable[..., Value]]":
    """Count the trailing zeros of a uint64 that is not 0."""

    def generate(
        context: "BaseContext", builder: "IRBuilder", signature: "Signature", arguments: "Sequence[Value]"
    ) -> "Value":
        return builder.cttz(arguments[0], context.get_constant(types.boolean, True))

    return types.int64(types.uint64), generate
