"""Exact and near-duplicates: min-hash signatures, banded candidates, union-find; one survivor a cluster.

Broder 1997 (resemblance by min-wise hashing); Lee et al. 2021, arXiv 2107.06499 (for language models).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.contract.params import Dedup
from stages.corpus.hashing import mix
from stages.corpus.kernels import kernel
from stages.corpus.words import Texts, fold_table, hash_ngrams, hash_words, in_threads, texts


class Duplicates(NamedTuple):
    """``kept`` bool (documents,); ``removed``: id, source, kept_id, cluster, kind (exact or near), similarity."""

    kept: np.ndarray
    removed: pa.Table
    sizes: np.ndarray  # int64 (clusters,): members, the survivor included


def find_duplicates(table: pa.Table, params: Dedup, progress: Callable[[int], None] = lambda n: None) -> Duplicates:
    """Clusters of equal and nearly equal documents; the lowest id of each survives.

    A cluster is a connected component: A and C may share one because both resemble B. ``similarity`` is the
    estimated Jaccard similarity with the survivor, 1 where the texts are equal. The result depends neither
    on the order of the rows nor on the number of threads.

    Args:
        table: id (unique), text, source.
        progress: called with the number of documents hashed.
    """
    order = pc.sort_indices(table["id"]).to_numpy()
    table = table.take(order)
    _, first, code = np.unique(
        pc.dictionary_encode(table["text"].combine_chunks()).indices.to_numpy(), return_index=True, return_inverse=True
    )
    twin = first[code]  # the lowest document with the same text
    signatures, empty = sign(texts(table["text"]), params.ngram, params.permutations, progress)
    candidates = np.flatnonzero((twin == np.arange(len(twin))) & ~empty)
    root = np.arange(len(twin), dtype=np.int64)
    rows = params.permutations // params.bands
    for band in range(params.bands):
        keys = _band_keys(signatures, candidates, band * rows, (band + 1) * rows)
        by_key = np.argsort(keys, kind="stable")
        _link(keys[by_key], candidates[by_key], signatures, params.threshold, root)
    survivor = _roots(root)[twin]
    removed = np.flatnonzero(survivor != np.arange(len(survivor)))
    kept = np.ones(len(table), bool)
    kept[order[removed]] = False
    return Duplicates(kept, _removed(table, removed, survivor, twin, signatures), _cluster_sizes(survivor))


def sign(
    documents: Texts, ngram: int, permutations: int, progress: Callable[[int], None] = lambda n: None
) -> tuple[np.ndarray, np.ndarray]:
    """Min-hash signatures over word n-grams.

    The hash family is multiply-shift (Dietzfelbinger et al. 1997): the upper 32 bits of a x + b mod 2^64.

    Returns:
        uint32 (documents, permutations), and bool (documents,): no word at all.
    """
    # Raw bits of PCG64 are the same in every numpy version; the numbers are part of the method, not a seed.
    raw = np.random.PCG64(20210714).random_raw(2 * permutations).astype(np.uint64)
    factor, shift = raw[:permutations] | np.uint64(1), raw[permutations:]
    signatures = np.full((len(documents.offsets) - 1, permutations), 0xFFFFFFFF, np.uint32)
    empty = np.zeros(len(signatures), np.bool_)
    fold = fold_table()

    def work(first: int, last: int) -> int:
        _sign(documents.data, documents.offsets, first, last, ngram, fold, factor, shift, signatures, empty)
        return last - first

    for done in in_threads(work, documents):
        progress(done)
    return signatures, empty


@kernel
def _sign(data, offsets, first, last, n, fold, factor, shift, signatures, empty):
    longest = 0
    for i in range(first, last):
        longest = max(longest, offsets[i + 1] - offsets[i])
    scratch = np.empty(longest, np.uint64)
    for i in range(first, last):
        words = hash_words(data, offsets[i], offsets[i + 1], fold, scratch)
        count = hash_ngrams(scratch, words, n)
        empty[i] = count == 0
        signature = signatures[i]
        for g in range(count):
            x = scratch[g]
            for p in range(signature.shape[0]):
                value = np.uint32((factor[p] * x + shift[p]) >> np.uint64(32))
                signature[p] = min(signature[p], value)


@kernel
def _band_keys(signatures, documents, start, stop):
    keys = np.empty(documents.shape[0], np.uint64)
    for k in range(documents.shape[0]):
        state = np.uint64(0)
        for p in range(start, stop):
            state = mix(state ^ np.uint64(signatures[documents[k], p])) + np.uint64(p)
        keys[k] = state
    return keys


@kernel
def _root(root, i):
    while root[i] != i:
        root[i] = root[root[i]]
        i = root[i]
    return i


@kernel
def _roots(root):
    out = np.empty_like(root)
    for i in range(root.shape[0]):
        out[i] = _root(root, i)
    return out


@kernel
def _link(keys, documents, signatures, threshold, root):
    """Joins every two documents of equal key whose signatures agree in at least ``threshold``.

    The lower index becomes the root, so a root is always its cluster's first document.
    """
    permutations = signatures.shape[1]
    start = 0
    while start < keys.shape[0]:
        stop = start + 1
        while stop < keys.shape[0] and keys[stop] == keys[start]:
            stop += 1
        for k in range(start + 1, stop):
            for j in range(start, k):
                a, b = _root(root, documents[j]), _root(root, documents[k])
                if a == b:
                    continue
                agree = 0
                for p in range(permutations):
                    agree += signatures[documents[j], p] == signatures[documents[k], p]
                if agree >= threshold * permutations:
                    root[max(a, b)] = min(a, b)
        start = stop


def _removed(table, removed, survivor, twin, signatures) -> pa.Table:
    kept = survivor[removed]
    same = twin[removed] == kept
    similarity = np.where(same, 1.0, (signatures[removed] == signatures[kept]).mean(axis=1))
    return pa.table(
        {
            "id": table["id"].take(removed),
            "source": table["source"].take(removed),
            "kept_id": table["id"].take(kept),
            "cluster": np.unique(kept, return_inverse=True)[1].astype(np.int64),
            "kind": np.where(same, "exact", "near"),
            "similarity": np.round(similarity, 6),
        }
    )


def _cluster_sizes(survivor: np.ndarray) -> np.ndarray:
    sizes = np.unique(survivor, return_counts=True)[1]
    return sizes[sizes > 1]
