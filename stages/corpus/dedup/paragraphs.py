"""Cut paragraphs that several documents share, found by the hash of their words, out of all but the first document.

A paragraph ends at a blank line, or, in a document without blank lines, at a newline. Paragraphs of few words
(headings, code, table rows) stay. Wenzek et al. 2019, arXiv 1911.00359 (CCNet), do so with lines.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from stages.corpus.text.folding import folded
from stages.corpus.text.hashing import mix, sequence_hash
from stages.corpus.text.kernels import kernel
from stages.corpus.text.words import Texts, fold_table, hash_words, longest_text

NEWLINE = ord("\n")
HELD = 64  # bytes of memory for each paragraph of a pass, at most

# Yields hashes (uint64) and numbers (int64, 0 for the first of the first document) of all paragraphs, in any order.
Hashes = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]


class Repeated(NamedTuple):
    """Paragraphs that occurred before.

    ``again`` bool (paragraphs,): the paragraph occurred before. ``empty`` int64: documents with nothing else, and
    ``holders``: the earlier documents with their first paragraphs.
    """

    again: np.ndarray
    empty: np.ndarray
    holders: np.ndarray


def hash_paragraphs(documents: Texts, least: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hash the paragraphs of at least ``least`` words (1 or more), by their words.

    Returns:
        uint64 (paragraphs,); their number in each document, int32 (documents,); and bool (documents,): the document has
        other words.
    """
    return _hash_paragraphs(*folded(documents), least, fold_table())


def find_repeated(counts: np.ndarray, others: np.ndarray, hashes: Hashes, memory: int) -> Repeated:
    """Find the paragraphs that occur in an earlier document, or earlier in their own.

    Args:
        counts, others: of each document, see `hash_paragraphs`.
        hashes: of all paragraphs, anew at each call.
        memory: bytes; it decides the number of passes over the hashes.
    """
    ends = np.cumsum(counts, dtype=np.int64)
    again = _again(hashes, int(counts.sum()), memory)
    repeated = np.diff(np.append(0, np.append(0, np.cumsum(again))[ends]))
    empty = np.flatnonzero((counts > 0) & (repeated == counts) & ~others)
    first = _firsts(hashes, ends[empty] - counts[empty]) if len(empty) else empty
    return Repeated(again, empty, np.searchsorted(ends, first, side="right"))


def _again(hashes: Hashes, count: int, memory: int) -> np.ndarray:
    passes = 1 + count * HELD // memory
    again = np.zeros(count, np.bool_)
    for k in range(passes):
        of_pass = [(h[mine], n[mine]) for h, n in hashes() for mine in [h % np.uint64(passes) == np.uint64(k)]]
        held, numbers = (np.concatenate(column) for column in zip(*of_pass, strict=True))
        order = np.lexsort((numbers, held))
        held, numbers = held[order], numbers[order]
        again[numbers[1:][held[1:] == held[:-1]]] = True
    return again


def _firsts(hashes: Hashes, wanted: np.ndarray) -> np.ndarray:
    """Return the number of the first paragraph equal to each of ``wanted`` (numbers in order, none twice)."""
    of_wanted = np.empty(len(wanted), np.uint64)
    for held, numbers in hashes():
        at, hit = _find(wanted, numbers)
        of_wanted[at] = held[hit]
    keys, inverse = np.unique(of_wanted, return_inverse=True)
    first = np.full(len(keys), np.iinfo(np.int64).max)
    for held, numbers in hashes():
        at, hit = _find(keys, held)
        np.minimum.at(first, at, numbers[hit])
    return first[inverse]


def _find(ordered: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places in ``ordered`` of the ``values`` that are in it, and which these are (bool)."""
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    hit = ordered[at] == values
    return at[hit], hit


def cut_paragraphs(documents: Texts, least: int, counts: np.ndarray, again: np.ndarray) -> Texts:
    """Cut paragraphs, and the newlines that are then last, out of documents.

    Args:
        least: words of a paragraph, as in `hash_paragraphs`.
        counts: paragraphs of each document.
        again: bool, of all documents' paragraphs one after another: which are cut out.
    """
    return Texts(*_cut(*documents, *folded(documents), least, fold_table(), counts, again))


@kernel
def _gap(data: np.ndarray, start: int, stop: int) -> int:
    """Return how many newlines in a row end a paragraph."""
    for at in range(start + 1, stop):
        if data[at] == NEWLINE and data[at - 1] == NEWLINE:
            return 2
    return 1


@kernel
def _end(data: np.ndarray, at: int, stop: int, gap: int) -> tuple[int, int]:
    """Return where the paragraph at ``at`` ends, and where the next one begins."""
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
def _hash_paragraphs(
    data: np.ndarray, offsets: np.ndarray, least: int, fold: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    documents = offsets.shape[0] - 1
    # A word and its separator take at least two bytes; a document's last word needs no separator.
    hashes = np.empty((offsets[documents] - offsets[0]) // (2 * least) + documents, np.uint64)
    counts, others, filled = np.zeros(documents, np.int32), np.zeros(documents, np.bool_), 0
    scratch = np.empty(longest_text(offsets, 0, documents), np.uint64)
    for i in range(documents):
        at, stop, before = offsets[i], offsets[i + 1], filled
        gap = _gap(data, at, stop)
        while at < stop:
            end, after = _end(data, at, stop, gap)
            words = hash_words(data, at, end, fold, scratch)
            if words >= least:
                hashes[filled] = mix(sequence_hash(scratch[:words]))
                filled += 1
            elif words > 0:
                others[i] = True
            at = after
        counts[i] = filled - before
    return hashes[:filled].copy(), counts, others


@kernel
def _cut(
    data: np.ndarray, offsets: np.ndarray, folded_data: np.ndarray, folded_offsets: np.ndarray, least: int,
    fold: np.ndarray, counts: np.ndarray, again: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Copy the texts without some paragraphs; words are counted in the folded texts, which have the same lines."""
    documents = offsets.shape[0] - 1
    out, bounds = np.empty(offsets[documents] - offsets[0], np.uint8), np.zeros(documents + 1, np.int64)
    scratch, number, filled = np.empty(longest_text(folded_offsets, 0, documents), np.uint64), 0, 0
    for i in range(documents):
        at, stop = offsets[i], offsets[i + 1]
        if again[number : number + counts[i]].any():
            begin, gap = filled, _gap(data, at, stop)
            place, limit = folded_offsets[i], folded_offsets[i + 1]
            while at < stop:
                _, after = _end(data, at, stop, gap)
                end, behind = _end(folded_data, place, limit, gap)
                drop = False
                if hash_words(folded_data, place, end, fold, scratch) >= least:
                    drop = again[number]
                    number += 1
                if not drop:
                    out[filled : filled + after - at] = data[at:after]
                    filled += after - at
                at, place = after, behind
            while filled > begin and out[filled - 1] == NEWLINE:
                filled -= 1
        else:
            out[filled : filled + stop - at] = data[at:stop]
            filled += stop - at
            number += counts[i]
        bounds[i + 1] = filled
    return out[:filled].copy(), bounds
