"""64-bit hashes and hash tables for numba kernels.

Everything stays uint64: numba silently turns uint64 with int64 into float64.
"""

import numpy as np

from stages.corpus.text.kernels import inlined, kernel


@inlined
def mix(x: np.uint64) -> np.uint64:
    """Mix the bits of ``x`` (uint64) by the finalizer of splitmix64: each output bit depends on each input bit."""
    x = np.uint64(x)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@inlined
def extend(state: np.uint64, x: np.uint64) -> np.uint64:
    """Return the hash ``state`` of a sequence extended by the element ``x`` (both uint64); finish it with `mix`."""
    return (state * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1)) ^ np.uint64(x)


@kernel
def sequence_hash(elements: np.ndarray) -> np.uint64:
    """Return the hash of ``elements`` by `extend`, not mixed yet."""
    state = np.uint64(0)
    for element in elements:
        state = extend(state, np.uint64(element))
    return state


@kernel
def table_size(n: int) -> int:
    """Return the least power of two that keeps a table of ``n`` keys half empty."""
    size = 4
    while size < 2 * n:
        size *= 2
    return size


@kernel
def slot(keys: np.ndarray, size: int, key: np.uint64) -> np.int64:
    """Return the place of ``key`` in the hash table keys[:size], or the free place (0) where it belongs.

    Open addressing. ``size`` is a power of two, at least one place is free, and ``key`` is not 0.
    """
    at = np.int64(key & np.uint64(size - 1))
    while keys[at] != 0 and keys[at] != key:
        at = (at + 1) & (size - 1)
    return at


@kernel
def set_bits(flags: int) -> int:
    """Count the bits set in ``flags`` (at least 0)."""
    count = 0
    while flags > 0:
        count += flags & 1
        flags >>= 1
    return count


@inlined
def nonzero(key: np.uint64) -> np.uint64:
    """Return ``key`` (uint64), or 1 for 0, which marks a free place."""
    return key if key != 0 else np.uint64(1)
