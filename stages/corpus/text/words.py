"""Hash the words and word n-grams of UTF-8 text to 64 bits, in numba kernels that run without the GIL.

A word is a maximal run of letters, digits, marks and underscores, compared in lower case. A character of a script
without spaces (Han, kana, Thai, Lao, Khmer, Burmese) is a word of its own. Invisible characters (soft hyphen,
zero-width space, variation selectors) are skipped. `stages.corpus.text.folding` normalizes texts first.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from stages.corpus.text.arrays import slices
from stages.corpus.text.hashing import extend, mix
from stages.corpus.text.kernels import inlined, kernel

BLOCK = 256  # n-grams hashed at a time, with the processor's vector instructions
Result = TypeVar("Result")
ALONE = np.uint32(1 << 31)  # bit of a fold entry: the character is a word of its own
SKIPPED = np.uint32(1 << 30)  # fold entry of an invisible character
# Thai and Lao, Burmese, Khmer, kana, Han.
_SPACELESS = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF),
              (0x4E00, 0x9FFF), (0xF900, 0xFAFF))  # fmt: skip
# Default_Ignorable_Code_Point of Unicode's DerivedCoreProperties.txt; for 0xE0000 to 0xE0FFF see `_folded`.
_INVISIBLE = ((0x00AD, 0x00AD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160), (0x17B4, 0x17B5),
              (0x180B, 0x180F), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164),
              (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8))  # fmt: skip


class Texts(NamedTuple):
    """Documents back to back: ``data`` uint8 (bytes), document i is data[offsets[i]:offsets[i + 1]]."""

    data: np.ndarray
    offsets: np.ndarray  # int64, documents + 1


def texts(column: pa.ChunkedArray | pa.Array) -> Texts:
    """Return the buffers of a string column without nulls, copied only if it has several chunks."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    array = array.cast(pa.large_string())
    if len(array) == 0:
        return Texts(np.zeros(0, np.uint8), np.zeros(1, np.int64))
    _, offsets, data = array.buffers()
    starts = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return Texts(np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8), starts)


def column(documents: Texts) -> pa.LargeStringArray:
    """Return ``documents`` as a string column: the inverse of `texts`."""
    return slices(documents.data, documents.offsets).view(pa.large_string())


@cache
def fold_table() -> np.ndarray:
    """Return the fold entry of each code point below 65536, uint32; for higher ones see `_folded`.

    It is the lower-case code point of a word character (with the bit ALONE for Han etc.), SKIPPED for an invisible
    character, 0 for any other.
    """
    import unicodedata

    table = np.zeros(1 << 16, np.uint32)
    for code in range(1 << 16):
        char = chr(code)
        if char == "_" or unicodedata.category(char)[0] in "LNM":
            table[code] = ord(char.lower()[0])
    for first, last in _SPACELESS:
        table[first : last + 1] |= np.where(table[first : last + 1] > 0, ALONE, np.uint32(0))
    for first, last in _INVISIBLE:
        table[first : last + 1] = SKIPPED
    table.flags.writeable = False
    return table


@kernel
def decode(data: np.ndarray, at: int) -> tuple[np.uint32, int]:
    """Return the code point (uint32) at byte ``at`` of valid UTF-8, and its width in bytes."""
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


@inlined
def _folded(code: np.uint32, fold: np.ndarray) -> np.uint32:
    """Return the fold entry of any code point.

    Beyond the Basic Multilingual Plane: a word character without case; Han alone; tags and variation selectors skipped.
    """
    if code < 0x10000:
        return fold[code]
    if 0x20000 <= code < 0x40000:
        return np.uint32(code) | ALONE
    return SKIPPED if 0xE0000 <= code < 0xE1000 else np.uint32(code)


@kernel
def hash_words(data: np.ndarray, start: int, stop: int, fold: np.ndarray, out: np.ndarray) -> int:
    """Write the hashes of the words of data[start:stop] to ``out`` (uint64, at least stop - start long).

    An ASCII character always writes the hash of the word before it, and ``count`` grows only if that word ends here:
    ends of words are unpredictable, so a branch would cost more than everything else.

    Returns:
        The number of words.
    """
    inside: int | np.int64
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
        folded = np.uint64(_folded(code, fold))
        if folded == SKIPPED:
            continue
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
def hash_ngrams(words: np.ndarray, count: int, n: int) -> int:
    """Replace the word hashes words[:count] by those of their n-grams, in order; fewer than n words are one n-gram.

    Returns:
        The number of n-grams, 0 only without words.
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


@kernel
def longest_text(offsets: np.ndarray, first: int, last: int) -> int:
    """Return the bytes of the longest of the documents from ``first`` to ``last``."""
    longest = 0
    for i in range(first, last):
        longest = max(longest, offsets[i + 1] - offsets[i])
    return longest


def in_threads(work: Callable[[int, int], Result], documents: Texts, block_bytes: int = 2**22) -> list[Result]:
    """Run ``work(first, last)`` for blocks of documents of about ``block_bytes``; return its results in their order."""
    starts = np.arange(documents.offsets[0], documents.offsets[-1], block_bytes)
    bounds = np.unique([0, *np.searchsorted(documents.offsets, starts), len(documents.offsets) - 1]).tolist()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(work, bounds[:-1], bounds[1:]))
