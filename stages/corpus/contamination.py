"""How much of an evaluation a training document gives away.

Overlap of word n-grams (Brown et al. 2020, arXiv 2005.14165, appendix C, takes 13 words), as the overlap
coefficient |A and B| / min(|A|, |B|) of the document with each held-out item: 1 where either lies within the
other, small where two documents only share a phrase or a template.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from stages.corpus.arrays import strings
from stages.corpus.hashing import nonzero, slot, table_size
from stages.corpus.kernels import kernel
from stages.corpus.words import Texts, fold_table, hash_ngrams, hash_words, in_threads, texts

# Keys of an evaluation record that name it rather than ask something.
_LABELS = frozenset({"id", "task", "format", "source", "license", "split", "subtask", "subject", "topic"})


class HeldOut(NamedTuple):
    """The n-grams of items that training must not see.

    ``keys`` uint64 and ``grams`` int64: a hash table from n-gram to its number;
    items of n-gram g: items[starts[g]:starts[g + 1]] (int64); ``sizes`` int64 (items,): distinct n-grams.
    """

    ngram: int
    keys: np.ndarray
    grams: np.ndarray
    starts: np.ndarray
    items: np.ndarray
    sizes: np.ndarray


class Overlap(NamedTuple):
    """``documents`` and ``items``, float64: the highest overlap coefficient of each with any of the others."""

    documents: np.ndarray
    items: np.ndarray


def passages(value: Any) -> Iterator[str]:
    """Every string of an evaluation record, at any depth, but for those that only name or file it."""
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


def index(items: list[list[str]], ngram: int) -> HeldOut:
    """The n-grams of each item's passages. A passage of fewer than ``ngram`` words cannot be found."""
    found = [passage for item in items for passage in item]
    owner = np.repeat(np.arange(len(items)), [len(item) for item in items])
    column = texts(strings(found))
    hashes, counts = _all_ngrams(column.data, column.offsets, ngram, fold_table())
    pairs = np.unique(np.stack([hashes, np.repeat(owner, counts).astype(np.uint64)], axis=1), axis=0)
    distinct, starts = np.unique(pairs[:, 0], return_index=True)
    belongs = pairs[:, 1].astype(np.int64)
    keys, grams = _table(distinct)
    sizes = np.bincount(belongs, minlength=len(items))
    return HeldOut(ngram, keys, grams, np.append(starts, len(pairs)), belongs, sizes)


def overlap(documents: Texts, held_out: HeldOut, progress: Callable[[int], None] = lambda n: None) -> Overlap:
    """How far each document and each held-out item is contained in one of the other kind."""
    found = np.zeros(len(documents.offsets) - 1)
    fold = fold_table()

    def work(first: int, last: int) -> tuple[int, np.ndarray]:
        best = np.zeros(len(held_out.sizes))
        _overlap(documents.data, documents.offsets, first, last, fold, *held_out, found, best)
        return last - first, best

    items = np.zeros(len(held_out.sizes))
    for done, best in in_threads(work, documents):
        items = np.maximum(items, best)
        progress(done)
    return Overlap(found, items)


@kernel
def _all_ngrams(data, offsets, n, fold):
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
def _table(distinct):
    size = table_size(distinct.shape[0])
    keys, grams = np.zeros(size, np.uint64), np.zeros(size, np.int64)
    for g in range(distinct.shape[0]):
        at = slot(keys, size, distinct[g])
        keys[at], grams[at] = distinct[g], g
    return keys, grams


@kernel
def _overlap(data, offsets, first, last, fold, n, keys, grams, starts, items, sizes, found, best):
    longest = 0
    for i in range(first, last):
        longest = max(longest, offsets[i + 1] - offsets[i])
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
            found[i] = max(found[i], share)
            best[item] = max(best[item], share)
            shared[item] = 0
