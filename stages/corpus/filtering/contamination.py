"""Measure how much of an evaluation a training document gives away.

The measure is the overlap of word n-grams (Brown et al. 2020, arXiv 2005.14165, appendix C, takes 13 words) of a
document and a held-out item, |A and B| / min(|A|, |B|): 1 if one contains the other, small if two documents only share
a phrase or a template.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from stages.corpus.text.arrays import strings
from stages.corpus.text.folding import folded
from stages.corpus.text.hashing import nonzero, slot, table_size
from stages.corpus.text.kernels import kernel
from stages.corpus.text.words import Texts, fold_table, hash_ngrams, hash_words, in_threads, longest_text, texts

# Keys of an evaluation record that label it: their strings are no part of a question or an answer.
_LABELS = frozenset({"id", "task", "format", "source", "license", "split", "subtask", "subject", "topic"})


class NgramIndex(NamedTuple):
    """N-grams of the items that training must not see.

    ``keys`` uint64 and ``grams`` int64: a hash table from n-gram to its number; items with n-gram g:
    items[starts[g]:starts[g + 1]] (int64); ``sizes`` int64 (items,): distinct n-grams.
    """

    ngram: int
    keys: np.ndarray
    grams: np.ndarray
    starts: np.ndarray
    items: np.ndarray
    sizes: np.ndarray


class Overlap(NamedTuple):
    """The highest overlap of each document with any item, and of each item with any document, float64."""

    documents: np.ndarray
    items: np.ndarray


def passages(value: Any) -> Iterator[str]:
    """Yield every string of an evaluation record, at any depth, except its labels."""
    waiting = [("", value)]
    while waiting:
        key, value = waiting.pop()
        if key in _LABELS:
            continue
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += [(name, value[name]) for name in sorted(value, reverse=True)]
        elif isinstance(value, list | tuple):
            waiting += [("", element) for element in reversed(value)]


def index(items: list[list[str]], ngram: int) -> NgramIndex:
    """Index the n-grams of each item's passages; a passage of fewer than ``ngram`` words has none."""
    owner = np.repeat(np.arange(len(items)), [len(item) for item in items])
    column = folded(texts(strings([passage for item in items for passage in item])))
    hashes, counts = _all_ngrams(column.data, column.offsets, ngram, fold_table())
    pairs = np.unique(np.stack([hashes, np.repeat(owner, counts).astype(np.uint64)], axis=1), axis=0)
    distinct, starts = np.unique(pairs[:, 0], return_index=True)
    belongs = pairs[:, 1].astype(np.int64)
    keys, grams = _table(distinct)
    sizes = np.bincount(belongs, minlength=len(items))
    return NgramIndex(ngram, keys, grams, np.append(starts, len(pairs)), belongs, sizes)


def ngram_overlap(documents: Texts, held_out: NgramIndex) -> Overlap:
    """Measure how far documents and held-out items contain each other."""
    documents, fold = folded(documents), fold_table()
    of_documents = np.zeros(len(documents.offsets) - 1)

    def work(first: int, last: int) -> np.ndarray:
        of_items = np.zeros(len(held_out.sizes))
        _overlap(documents.data, documents.offsets, first, last, fold, *held_out, of_documents, of_items)
        return of_items

    blocks = in_threads(work, documents)
    return Overlap(of_documents, np.maximum.reduce([np.zeros(len(held_out.sizes)), *blocks]))


@kernel
def _all_ngrams(data: np.ndarray, offsets: np.ndarray, n: int, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    out = np.empty(data.shape[0] + 1, np.uint64)
    counts = np.zeros(offsets.shape[0] - 1, np.int64)
    filled = 0
    for i in range(offsets.shape[0] - 1):
        words = hash_words(data, offsets[i], offsets[i + 1], fold, out[filled:])
        if words >= n:
            counts[i] = hash_ngrams(out[filled:], words, n)
        for k in range(filled, filled + counts[i]):
            out[k] = nonzero(out[k])
        filled += counts[i]
    return out[:filled].copy(), counts


@kernel
def _table(distinct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = table_size(distinct.shape[0])
    keys, grams = np.zeros(size, np.uint64), np.zeros(size, np.int64)
    for g in range(distinct.shape[0]):
        at = slot(keys, size, distinct[g])
        keys[at], grams[at] = distinct[g], g
    return keys, grams


@kernel
def _overlap(
    data: np.ndarray, offsets: np.ndarray, first: int, last: int, fold: np.ndarray, n: int, keys: np.ndarray,
    grams: np.ndarray, starts: np.ndarray, items: np.ndarray, sizes: np.ndarray, of_documents: np.ndarray,
    of_items: np.ndarray,
) -> None:  # fmt: skip
    longest = longest_text(offsets, first, last)
    scratch = np.empty(longest + 1, np.uint64)
    seen = np.empty(table_size(longest // 2 + 1), np.uint64)
    shared = np.zeros(sizes.shape[0], np.int64)
    touched = np.empty(sizes.shape[0], np.int64)
    for i in range(first, last):
        words = hash_words(data, offsets[i], offsets[i + 1], fold, scratch)
        count = hash_ngrams(scratch, words, n)
        room = table_size(count)
        seen[:room] = 0
        own = reached = 0
        for k in range(count):
            key = nonzero(scratch[k])
            place = slot(seen, room, key)
            if seen[place] != 0:
                continue
            seen[place] = key
            own += 1
            at = slot(keys, keys.shape[0], key)
            if keys[at] == 0:
                continue
            for p in range(starts[grams[at]], starts[grams[at] + 1]):
                item = items[p]
                if shared[item] == 0:
                    touched[reached] = item
                    reached += 1
                shared[item] += 1
        for k in range(reached):
            item = touched[k]
            share = shared[item] / min(own, sizes[item])
            of_documents[i] = max(of_documents[i], share)
            of_items[item] = max(of_items[item], share)
            shared[item] = 0
