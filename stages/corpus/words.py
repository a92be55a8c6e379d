"""Words and word n-grams of UTF-8 text as 64-bit hashes, in numba kernels that run without the GIL.

A word is a maximal run of letters, digits, marks and underscores, compared in lower case; a character of a
script written without spaces (Han, kana, Thai, Lao, Khmer, Burmese) is a word of its own.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from stages.corpus.hashing import extend, mix
from stages.corpus.kernels import kernel

BLOCK = 256  # n-grams hashed at a time, in the processor's vectors
# Bit 31 of a fold entry: this character is a word of its own.
ALONE = np.uint32(1 << 31)
_SPACELESS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # kana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
)


class Texts(NamedTuple):
    """Documents back to back: ``data`` uint8 (bytes), document i is data[offsets[i]:offsets[i + 1]]."""

    data: np.ndarray
    offsets: np.ndarray  # int64, documents + 1


def texts(column: pa.ChunkedArray | pa.Array) -> Texts:
    """The buffers of a string column without null values, copied only where it has several chunks."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    array = array.cast(pa.large_string())
    if len(array) == 0:
        return Texts(np.zeros(0, np.uint8), np.zeros(1, np.int64))
    _, offsets, data = array.buffers()
    starts = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return Texts(np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8), starts)


def column(documents: Texts) -> pa.LargeStringArray:
    """The column that `texts` gives ``documents`` for."""
    offsets, data = pa.py_buffer(documents.offsets), pa.py_buffer(documents.data)
    return pa.LargeStringArray.from_buffers(len(documents.offsets) - 1, offsets, data)


@cache
def fold_table() -> np.ndarray:
    """uint32 (65536,): the lower-case code point of a word character, 0 for any other, ALONE set for Han etc.

    Characters beyond the Basic Multilingual Plane are taken as word characters without case.
    """
    import unicodedata

    table = np.zeros(1 << 16, np.uint32)
    for code in range(1 << 16):
        char = chr(code)
        if char == "_" or unicodedata.category(char)[0] in "LNM":
            table[code] = ord(char.lower()[0])
    for first, last in _SPACELESS:
        table[first : last + 1] |= np.where(table[first : last + 1] > 0, ALONE, np.uint32(0))
    table.flags.writeable = False
    return table


@kernel
def decode(data, at):
    """The code point that starts at byte ``at`` of valid UTF-8 (uint32) and its width in bytes."""
    byte = np.uint32(data[at])
    if byte < 0x80:
        return byte, 1
    if byte < 0xE0:
        code, width = byte & np.uint32(0x1F), 2
    elif byte < 0xF0:
        code, width = byte & np.uint32(0x0F), 3
    else:
        code, width = byte & np.uint32(0x07), 4
    for k in range(1, width):
        code = (code << np.uint32(6)) | (np.uint32(data[at + k]) & np.uint32(0x3F))
    return code, width


@kernel
def hash_words(data, start, stop, fold, out):
    """Hashes of the words of data[start:stop] into ``out`` (uint64, at least stop - start long).

    Of ASCII each character writes the word before it to its place, which only counts where that word ended here: where
    words end cannot be foreseen, and a branch for it costs more than all the rest.

    Returns:
        The number of words.
    """
    count, state, inside, at = 0, np.uint64(0), 0, start
    while at < stop:
        if data[at] < 0x80:
            folded = np.uint64(fold[data[at]])
            at += 1
            out[count] = state
            count += inside & (folded == 0)
            inside = np.int64(folded != 0)
            state = extend(state, folded) if inside else np.uint64(0)
            continue
        code, width = decode(data, at)
        at += width
        folded = np.uint64(fold[code] if code < 0x10000 else code)
        alone = folded >= ALONE
        if inside and (folded == 0 or alone):
            out[count] = state
            count += 1
            state, inside = np.uint64(0), 0
        if alone:
            out[count] = folded
            count += 1
        elif folded != 0:
            state, inside = extend(state, folded), 1
    if inside:
        out[count] = state
        count += 1
    for k in range(count):
        out[k] = mix(out[k])
    return count


@kernel
def hash_ngrams(words, count, n):
    """Replaces words[:count] by the hashes of their n-grams, in order. Fewer than n words are one n-gram.

    Returns:
        The number of n-grams, 0 only where there is no word.
    """
    n = min(n, count)
    if n == 0:
        return 0
    states = np.empty(min(count, BLOCK), np.uint64)
    for first in range(0, count - n + 1, BLOCK):
        some = states[: min(BLOCK, count - n + 1 - first)]
        some[:] = 0
        for k in range(n):
            following = words[first + k : first + k + some.shape[0]]
            for i in range(some.shape[0]):
                some[i] = extend(some[i], following[i])
        for i in range(some.shape[0]):
            words[first + i] = mix(some[i])
    return count - n + 1


def in_threads(work: Callable[[int, int], Any], documents: Texts, block_bytes: int = 2**22) -> Iterator[Any]:
    """``work(first, last)`` over blocks of documents of about ``block_bytes``, results in order of the blocks."""
    starts = np.arange(documents.offsets[0], documents.offsets[-1], block_bytes)
    bounds = np.unique([0, *np.searchsorted(documents.offsets, starts), len(documents.offsets) - 1]).tolist()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(work, bounds[:-1], bounds[1:])
