"""Paragraphs that stand in several documents: found by the hash of their words, cut out of all but the first.

A paragraph ends at a blank line, or, in a document without any, at a newline. Those of few words (headings, code,
table rows) are left alone. Wenzek et al. 2019, arXiv 1911.00359 (CCNet), do so with lines.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from stages.corpus.hashing import extend, mix
from stages.corpus.kernels import kernel
from stages.corpus.words import Texts, fold_table, hash_words

NEWLINE = ord("\n")
# What finding the repeated ones takes at most for each paragraph that is held.
HELD = 64  # bytes

# Hashes (uint64) and numbers (int64, 0 for the first of the first document) of all paragraphs, in pieces in any order.
Hashes = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]


class Repeated(NamedTuple):
    """``again`` bool (paragraphs,): stands before. ``empty`` int64: the documents of which nothing else is left, and
    ``holders``: those that have their first paragraphs before."""

    again: np.ndarray
    empty: np.ndarray
    holders: np.ndarray


def hash_paragraphs(documents: Texts, least: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The paragraphs of at least ``least`` words (1 or more), equal where their words are.

    Returns:
        uint64 (paragraphs,); int32 (documents,): how many of them each has; bool (documents,): it has words beside.
    """
    return _hash_paragraphs(documents.data, documents.offsets, least, fold_table())


def find_repeated(counts: np.ndarray, beside: np.ndarray, hashes: Hashes, memory: int) -> Repeated:
    """Paragraphs that stand in an earlier document, or earlier in their own.

    Args:
        counts, beside: of each document, see `hash_paragraphs`.
        hashes: of all paragraphs, anew at each call.
        memory: bytes; the hashes are gone through in as many passes as need no more.
    """
    ends = np.cumsum(counts, dtype=np.int64)
    again = _again(hashes, int(counts.sum()), memory)
    left_out = np.diff(np.append(0, np.append(0, np.cumsum(again))[ends]))
    empty = np.flatnonzero((counts > 0) & (left_out == counts) & ~beside)
    first = _firsts(hashes, ends[empty] - counts[empty]) if len(empty) else empty
    return Repeated(again, empty, np.searchsorted(ends, first, side="right"))


def _again(hashes: Hashes, count: int, memory: int) -> np.ndarray:
    passes = 1 + count * HELD // memory
    again = np.zeros(count, np.bool_)
    for k in range(passes):
        found = [(h[mine], n[mine]) for h, n in hashes() for mine in [h % np.uint64(passes) == np.uint64(k)]]
        held, numbers = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.lexsort((numbers, held))
        held, numbers = held[order], numbers[order]
        again[numbers[1:][held[1:] == held[:-1]]] = True
    return again


def _firsts(hashes: Hashes, wanted: np.ndarray) -> np.ndarray:
    """The number of the first paragraph that equals each of ``wanted`` (numbers in order, none twice)."""
    asked = np.empty(len(wanted), np.uint64)
    for held, numbers in hashes():
        at, hit = _find(wanted, numbers)
        asked[at] = held[hit]
    keys, inverse = np.unique(asked, return_inverse=True)
    found = np.full(len(keys), np.iinfo(np.int64).max)
    for held, numbers in hashes():
        at, hit = _find(keys, held)
        np.minimum.at(found, at, numbers[hit])
    return found[inverse]


def _find(ordered: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where in ``ordered`` those of ``values`` stand that do, and which these are (bool)."""
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    hit = ordered[at] == values
    return at[hit], hit


def cut(documents: Texts, least: int, counts: np.ndarray, again: np.ndarray) -> Texts:
    """The documents without the paragraphs of ``again`` (bool, of all documents' paragraphs one after another, of
    which each has ``counts``), and without the newlines that then stand at their ends."""
    return Texts(*_cut(documents.data, documents.offsets, least, fold_table(), counts, again))


@kernel
def _gap(data, start, stop):
    """So many newlines in a row end a paragraph."""
    for at in range(start + 1, stop):
        if data[at] == NEWLINE and data[at - 1] == NEWLINE:
            return 2
    return 1


@kernel
def _end(data, at, stop, gap):
    """Where the paragraph that begins at ``at`` ends, and where the next one begins."""
    while at < stop:
        if data[at] == NEWLINE:
            after = at + 1
            while after < stop and data[after] == NEWLINE:
                after += 1
            if after - at >= gap:
                return at, after
            at = after
        else:
            at += 1
    return stop, stop


@kernel
def _longest(offsets):
    longest = 0
    for i in range(offsets.shape[0] - 1):
        longest = max(longest, offsets[i + 1] - offsets[i])
    return longest


@kernel
def _hash_paragraphs(data, offsets, least, fold):
    documents = offsets.shape[0] - 1
    # A word and what separates it from the next take two bytes, but for a document's last.
    hashes = np.empty((offsets[documents] - offsets[0]) // (2 * least) + documents, np.uint64)
    counts, beside, filled = np.zeros(documents, np.int32), np.zeros(documents, np.bool_), 0
    scratch = np.empty(_longest(offsets), np.uint64)
    for i in range(documents):
        at, stop, before = offsets[i], offsets[i + 1], filled
        gap = _gap(data, at, stop)
        while at < stop:
            end, after = _end(data, at, stop, gap)
            words = hash_words(data, at, end, fold, scratch)
            if words >= least:
                state = np.uint64(0)
                for k in range(words):
                    state = extend(state, scratch[k])
                hashes[filled] = mix(state)
                filled += 1
            elif words > 0:
                beside[i] = True
            at = after
        counts[i] = filled - before
    return hashes[:filled].copy(), counts, beside


@kernel
def _cut(data, offsets, least, fold, counts, again):
    documents = offsets.shape[0] - 1
    out, bounds = np.empty(offsets[documents] - offsets[0], np.uint8), np.zeros(documents + 1, np.int64)
    scratch, number, filled = np.empty(_longest(offsets), np.uint64), 0, 0
    for i in range(documents):
        at, stop = offsets[i], offsets[i + 1]
        if again[number : number + counts[i]].any():
            begin, gap = filled, _gap(data, at, stop)
            while at < stop:
                end, after = _end(data, at, stop, gap)
                drop = False
                if hash_words(data, at, end, fold, scratch) >= least:
                    drop = again[number]
                    number += 1
                if not drop:
                    out[filled : filled + after - at] = data[at:after]
                    filled += after - at
                at = after
            while filled > begin and out[filled - 1] == NEWLINE:
                filled -= 1
        else:
            out[filled : filled + stop - at] = data[at:stop]
            filled += stop - at
            number += counts[i]
        bounds[i + 1] = filled
    return out[:filled].copy(), bounds
