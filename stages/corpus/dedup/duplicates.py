"""Cluster exact and near-duplicates: candidates by band, union-find; the first document of a cluster survives.

Broder 1997 (resemblance by min-wise hashing); Lee et al. 2021, arXiv 2107.06499 (for language models). The signatures
come from `signatures`.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from stages.contract.params import Dedup
from stages.corpus.text.kernels import kernel

if TYPE_CHECKING:
    from stages.corpus.dedup.collection import Collection

LARGE = 256  # documents of equal key, up to which every pair is compared
FIRSTS = 1024  # above, each document is compared with the first documents of at most so many clusters


def at_once(room: int, params: Dedup) -> int:
    """Return how many signatures a sixteenth of ``room`` (bytes) holds."""
    return room // (64 * params.permutations)


def find_duplicates(
    documents: "Collection",
    params: Dedup,
    at_once: int,
    linked: Callable[[int], np.ndarray | None] = lambda band: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster exact and near-duplicates; the first document of each cluster survives.

    A cluster is a connected component: A and C may share one because both resemble B. A key that very many documents
    share (pages from one template) costs linear time: each document is compared only with the first of each cluster
    among them. The links of a band do not depend on other bands: bands can be processed one by one, anywhere.

    Args:
        documents: see `link_band`.
        at_once: signatures in memory at a time.
        linked: the links of a band from an earlier `link_band`, or None.

    Returns:
        int64 (documents,) each: the survivor, and the first document with the same text.
    """
    exact = exact_duplicates(documents.hashes)
    root = np.arange(len(exact), dtype=np.int64)
    for band in range(params.bands):
        if (links := linked(band)) is None:
            link_band(documents, band, exact, params, at_once, root)
        else:
            _join(np.arange(len(root)), links, root)
    return _roots(root)[exact], exact


def link_band(
    documents: "Collection", band: int, exact: np.ndarray, params: Dedup, at_once: int, root: np.ndarray
) -> None:
    """Join near-duplicates with equal keys in ``band``.

    Args:
        documents: of which this reads ``keys``, ``signatures``, and ``wordless``: those resemble only their equals.
        exact: int64 (documents,), see `exact_duplicates`; of equal texts only the first is compared.
        at_once: signatures in memory at a time.
        root: int64 (documents,), a union-find in which the root of a cluster is its first document.
    """
    candidates = np.flatnonzero((exact == np.arange(len(exact))) & ~documents.wordless)
    keys = documents.keys(band)[candidates]
    by_key = np.argsort(keys)
    members, bounds = _groups(keys[by_key], candidates[by_key], root)
    for start, stop in _runs(bounds, max(at_once, LARGE)):
        group = members[bounds[start] : bounds[stop]]
        if len(group) > LARGE and stop == start + 1:
            _link_large(group, documents.signatures, params.threshold, root, at_once)
        else:
            signatures, bounds_within = documents.signatures(group), bounds[start : stop + 1] - bounds[start]
            _link(signatures, group, bounds_within, params.threshold, root)


def exact_duplicates(hashes: np.ndarray) -> np.ndarray:
    """Return the first document with an equal hash, int64 (documents,); ``hashes``: uint64 (documents, 2)."""
    order = np.lexsort((np.arange(len(hashes)), hashes[:, 1], hashes[:, 0]))
    ordered = hashes[order]
    new = np.append(np.ones(min(1, len(order)), bool), (ordered[1:] != ordered[:-1]).any(axis=1))
    first = np.empty(len(order), np.int64)
    first[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    return first


def _runs(bounds: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Yield runs of whole groups with at most ``most`` documents; a larger group, and one above LARGE, by itself."""
    start, last = 0, len(bounds) - 1
    sizes = np.diff(bounds)
    large = np.flatnonzero(sizes > LARGE)
    while start < last:
        stop = int(np.searchsorted(bounds, bounds[start] + most, side="right")) - 1
        next_large = int(large[k]) if (k := np.searchsorted(large, start)) < len(large) else last
        stop = min(max(stop, start + 1), next_large if next_large > start else start + 1)
        yield start, stop
        start = stop


def _link_large(
    group: np.ndarray, signatures: Callable[[np.ndarray], np.ndarray], threshold: float, root: np.ndarray, at_once: int
) -> None:
    # In a union-find of their own: the pairs that are compared must not depend on the links of other bands.
    within, firsts = np.arange(len(group)), np.zeros(0, np.int64)
    for start in range(0, len(group), at_once):
        rows = np.concatenate([firsts, np.arange(start, min(start + at_once, len(group)))])
        firsts = rows[_lead(signatures(group[rows]), rows, len(firsts), threshold, within)]
    _join(group, group[_roots(within)], root)


@kernel
def _groups(keys: np.ndarray, documents: np.ndarray, root: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the documents with equal keys, in order, if they are not in one cluster yet; and the groups' bounds."""
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
def _root(root: np.ndarray, i: int) -> int:
    while root[i] != i:
        root[i] = root[root[i]]
        i = root[i]
    return i


@kernel
def _roots(root: np.ndarray) -> np.ndarray:
    out = np.empty_like(root)
    for i in range(root.shape[0]):
        out[i] = _root(root, i)
    return out


@kernel
def _join(these: np.ndarray, those: np.ndarray, root: np.ndarray) -> None:
    """Join each of these documents with one of those; the lower index becomes the root."""
    for k in range(these.shape[0]):
        a, b = _root(root, these[k]), _root(root, those[k])
        root[max(a, b)] = min(a, b)


@kernel
def _alike(signatures: np.ndarray, j: int, k: int, threshold: float) -> bool:
    agree = 0
    for p in range(signatures.shape[1]):
        agree += signatures[j, p] == signatures[k, p]
    return agree >= threshold * signatures.shape[1]


@kernel
def _link(
    signatures: np.ndarray, documents: np.ndarray, bounds: np.ndarray, threshold: float, root: np.ndarray
) -> None:
    """Join every two documents of a group whose signatures agree in at least ``threshold``.

    The lower index becomes the root, so a root is the first document of its cluster.
    """
    for group in range(bounds.shape[0] - 1):
        for k in range(bounds[group] + 1, bounds[group + 1]):
            for j in range(bounds[group], k):
                a, b = _root(root, documents[j]), _root(root, documents[k])
                if a != b and _alike(signatures, j, k, threshold):
                    root[max(a, b)] = min(a, b)


@kernel
def _lead(signatures: np.ndarray, documents: np.ndarray, known: int, threshold: float, root: np.ndarray) -> np.ndarray:
    """Join each document from ``known`` on with the first documents that it resembles.

    A document in the cluster of none of them becomes a first document.

    Returns:
        The places of the first documents, the ``known`` ones in front.
    """
    firsts, count = np.empty(FIRSTS, np.int64), known
    firsts[:known] = np.arange(known)
    for k in range(known, documents.shape[0]):
        joined = False
        for i in range(count):
            a, b = _root(root, documents[firsts[i]]), _root(root, documents[k])
            if a != b and _alike(signatures, firsts[i], k, threshold):
                root[max(a, b)] = min(a, b)
                b = a
            joined |= a == b
        if not joined and count < FIRSTS:
            firsts[count] = k
            count += 1
    return firsts[:count].copy()
