"""64-bit hashes and a set of them, for numba kernels.

Everything stays uint64: numba turns uint64 with int64 into float64 without a word.
"""

import numpy as np

from stages.corpus.kernels import inlined, kernel


@inlined
def mix(x):
    """The finalizer of splitmix64: uint64 to uint64, every input bit reaching every output bit."""
    x = np.uint64(x)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@inlined
def extend(state, x):
    """The hash of a sequence (uint64) with one more element (uint64); to be finished with `mix`."""
    return (state * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1)) ^ np.uint64(x)


@kernel
def table_size(n):
    """The least power of two that keeps a table of ``n`` keys half empty."""
    size = 4
    while size < 2 * n:
        size *= 2
    return size


@kernel
def slot(keys, size, key):
    """Where ``key`` stands in keys[:size], or the free place (0) where it belongs: open addressing.

    ``size`` is a power of two, at least one place is free, and ``key`` is not 0.
    """
    at = np.int64(key & np.uint64(size - 1))
    while keys[at] != 0 and keys[at] != key:
        at = (at + 1) & (size - 1)
    return at


@inlined
def nonzero(key):
    """``key`` (uint64), or 1 where it is 0, which marks a free place."""
    return key if key != 0 else np.uint64(1)
