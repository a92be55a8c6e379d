"""Exact and near-duplicates: min-hash signatures, banded candidates, union-find; one survivor a cluster.

Broder 1997 (resemblance by min-wise hashing); Lee et al. 2021, arXiv 2107.06499 (for language models).
"""

from collections.abc import Callable, Iterator

import numpy as np

from stages.contract.params import Dedup
from stages.corpus.hashing import mix
from stages.corpus.kernels import kernel
from stages.corpus.words import Texts, fold_table, hash_ngrams, hash_words

LARGE = 256  # documents of equal key, up to which every two of them are compared
VECTORS = 32  # n-grams that a processor compares at once, at most
BLOCK = 1024  # n-grams compared for one permutation after the other, as many as its nearest cache holds
FIRSTS = 1024  # beyond, each is compared with the first ones of so many clusters


def at_once(room: int, params: Dedup) -> int:
    """How many signatures a sixteenth of ``room`` (bytes) holds."""
    return room // (64 * params.permutations)


def find_duplicates(
    hashes: np.ndarray,
    wordless: np.ndarray,
    keys: Callable[[int], np.ndarray],
    signatures: Callable[[np.ndarray], np.ndarray],
    params: Dedup,
    at_once: int,
    linked: Callable[[int], np.ndarray | None] = lambda band: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of equal and nearly equal documents; the first of each survives.

    A cluster is a connected component: A and C may share one because both resemble B. A key that very many
    documents share (pages from one template) costs time linear in their number: each is compared only with the first
    of every cluster there is among them. What a band links does not depend on other bands: they may be looked at one
    by one, anywhere.

    Args:
        hashes: uint64 (documents, 2), equal where the texts are.
        wordless: bool (documents,), which resemble only their equals.
        keys: uint64 (documents,) of band b, see `band_keys`.
        signatures: uint32 (rows, permutations) of some documents (int64).
        at_once: so many signatures are held at a time.
        linked: what `link_band` found in a band, if it was called before.

    Returns:
        int64 (documents,) each: the survivor, and the first with the same text.
    """
    twin = twins(hashes)
    root = np.arange(len(twin), dtype=np.int64)
    for band in range(params.bands):
        if (found := linked(band)) is None:
            link_band(keys(band), twin, wordless, signatures, params.threshold, at_once, root)
        else:
            _join(np.arange(len(root)), found, root)
    return _roots(root)[twin], twin


def link_band(
    keys: np.ndarray,
    twin: np.ndarray,
    wordless: np.ndarray,
    signatures: Callable[[np.ndarray], np.ndarray],
    threshold: float,
    at_once: int,
    root: np.ndarray,
) -> None:
    """Joins the documents of equal key that are nearly equal in the union-find ``root``, int64 (documents,).

    A document's root is the first of its cluster. Of equal texts only the first is looked at.
    """
    candidates = np.flatnonzero((twin == np.arange(len(twin))) & ~wordless)
    found = keys[candidates]
    by_key = np.argsort(found)
    members, bounds = _groups(found[by_key], candidates[by_key], root)
    for start, stop in _runs(bounds, max(at_once, LARGE)):
        group = members[bounds[start] : bounds[stop]]
        if len(group) > LARGE and stop == start + 1:
            _link_large(group, signatures, threshold, root, at_once)
        else:
            _link(signatures(group), group, bounds[start : stop + 1] - bounds[start], threshold, root)


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 (documents,): the estimated Jaccard similarity of two rows of signatures."""
    return (a == b).mean(axis=1)


def twins(hashes: np.ndarray) -> np.ndarray:
    """int64 (documents,): the first with an equal hash."""
    order = np.lexsort((np.arange(len(hashes)), hashes[:, 1], hashes[:, 0]))
    ordered = hashes[order]
    new = np.append(np.ones(min(1, len(order)), bool), (ordered[1:] != ordered[:-1]).any(axis=1))
    twin = np.empty(len(order), np.int64)
    twin[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    return twin


def _runs(bounds: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Runs of whole groups of at most ``most`` documents in all; a larger group, and one above LARGE, by itself."""
    start, last = 0, len(bounds) - 1
    sizes = np.diff(bounds)
    large = np.flatnonzero(sizes > LARGE)
    while start < last:
        stop = int(np.searchsorted(bounds, bounds[start] + most, side="right")) - 1
        next_large = int(large[k]) if (k := np.searchsorted(large, start)) < len(large) else last
        stop = min(max(stop, start + 1), next_large if next_large > start else start + 1)
        yield start, stop
        start = stop


def _link_large(group: np.ndarray, signatures, threshold: float, root: np.ndarray, at_once: int) -> None:
    # By themselves first: which are compared must not depend on what other bands have linked.
    within, firsts = np.arange(len(group)), np.zeros(0, np.int64)
    for start in range(0, len(group), at_once):
        rows = np.concatenate([firsts, np.arange(start, min(start + at_once, len(group)))])
        firsts = rows[_lead(signatures(group[rows]), rows, len(firsts), threshold, within)]
    _join(group, group[_roots(within)], root)


def sign(documents: Texts, ngram: int, permutations: int) -> tuple[np.ndarray, np.ndarray]:
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
    _sign(documents.data, documents.offsets, 0, len(empty), ngram, fold_table(), factor, shift, signatures, empty)
    return signatures, empty


def band_keys(signatures: np.ndarray, bands: int) -> np.ndarray:
    """uint64 (bands, documents): documents whose signatures agree in all rows of a band have one key there."""
    return _band_keys(signatures, bands)


@kernel
def _sign(data, offsets, first, last, n, fold, factor, shift, signatures, empty):
    longest = 0
    for i in range(first, last):
        longest = max(longest, offsets[i + 1] - offsets[i])
    scratch = np.empty(longest + VECTORS, np.uint64)  # only what is written to takes memory
    for i in range(first, last):
        words = hash_words(data, offsets[i], offsets[i + 1], fold, scratch)
        count = hash_ngrams(scratch, words, n)
        empty[i] = count == 0
        _least(scratch, count, factor, shift, signatures[i])


@kernel
def _least(ngrams, count, factor, shift, signature):
    """The least upper 32 bits, which are those of the least product and sum: so whole vectors are compared as they are.

    The last n-gram is repeated behind ``count`` until there are only whole vectors.
    """
    whole = -(-count // VECTORS) * VECTORS
    ngrams[count:whole] = ngrams[count - 1]
    for first in range(0, whole, BLOCK):
        some = ngrams[first : min(first + BLOCK, whole)]
        for p in range(signature.shape[0]):
            a, b, least = factor[p], shift[p], np.uint64(0xFFFFFFFFFFFFFFFF)
            for g in range(some.shape[0]):
                least = min(least, a * some[g] + b)
            signature[p] = min(signature[p], np.uint32(least >> np.uint64(32)))


@kernel
def _band_keys(signatures, bands):
    keys = np.empty((bands, signatures.shape[0]), np.uint64)
    rows = signatures.shape[1] // bands
    for k in range(signatures.shape[0]):
        for band in range(bands):
            state = np.uint64(0)
            for p in range(band * rows, (band + 1) * rows):
                state = mix(state ^ np.uint64(signatures[k, p])) + np.uint64(p)
            keys[band, k] = state
    return keys


@kernel
def _groups(keys, documents, root):
    """The documents of equal key, in order, where there are several not yet in one cluster; the groups' bounds."""
    members, bounds = np.empty_like(documents), np.empty(documents.shape[0] // 2 + 2, np.int64)
    filled = groups = start = 0
    bounds[0] = 0
    while start < keys.shape[0]:
        stop, several = start + 1, False
        while stop < keys.shape[0] and keys[stop] == keys[start]:
            several |= _root(root, documents[stop]) != _root(root, documents[start])
            stop += 1
        if several:
            members[filled : filled + stop - start] = np.sort(documents[start:stop])
            filled += stop - start
            groups += 1
            bounds[groups] = filled
        start = stop
    return members[:filled].copy(), bounds[: groups + 1].copy()


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
def _join(these, those, root):
    """Joins each of the one documents with one of the others; the lower index becomes the root."""
    for k in range(these.shape[0]):
        a, b = _root(root, these[k]), _root(root, those[k])
        root[max(a, b)] = min(a, b)


@kernel
def _alike(signatures, j, k, threshold):
    agree = 0
    for p in range(signatures.shape[1]):
        agree += signatures[j, p] == signatures[k, p]
    return agree >= threshold * signatures.shape[1]


@kernel
def _link(signatures, documents, bounds, threshold, root):
    """Joins every two documents of a group whose signatures agree in at least ``threshold``.

    The lower index becomes the root, so a root is always its cluster's first document.
    """
    for group in range(bounds.shape[0] - 1):
        for k in range(bounds[group] + 1, bounds[group + 1]):
            for j in range(bounds[group], k):
                a, b = _root(root, documents[j]), _root(root, documents[k])
                if a != b and _alike(signatures, j, k, threshold):
                    root[max(a, b)] = min(a, b)


@kernel
def _lead(signatures, documents, known, threshold, root):
    """Joins each document from ``known`` on with those of the first ones that it resembles; one that is in no
    first one's cluster becomes a first one itself. Returns their places, the ``known`` ones before them."""
    firsts, count = np.empty(FIRSTS, np.int64), known
    firsts[:known] = np.arange(known)
    for k in range(known, documents.shape[0]):
        found = False
        for i in range(count):
            a, b = _root(root, documents[firsts[i]]), _root(root, documents[k])
            if a != b and _alike(signatures, firsts[i], k, threshold):
                root[max(a, b)] = min(a, b)
                b = a
            found |= a == b
        if not found and count < FIRSTS:
            firsts[count] = k
            count += 1
    return firsts[:count].copy()
