"""How good a document is, learned from labelled ones: a linear classifier on hashed words and pairs of words.

What fastText does (Joulin et al. 2016, arXiv 1607.01759) but for its hidden layer: a sigmoid of the features' weights,
summed and divided by the root of their number, fitted by AdaGrad, one document at a time in the order of their hashes,
so that neither the order of the files nor the number of threads shows in the result.
"""

import hashlib
from collections.abc import Callable
from pathlib import PurePath
from typing import NamedTuple

import numpy as np

from stages.contract.errors import UserError
from stages.contract.params import Source
from stages.corpus.arrays import strings
from stages.corpus.hashing import extend, mix
from stages.corpus.kernels import kernel
from stages.corpus.records import Record, Rejected, excerpt, read_records
from stages.corpus.words import Texts, fold_table, hash_words, in_threads, texts

BUCKETS = 2**18
EPOCHS, RATE = 10, 0.5
HELD_OUT = 10  # one seed in so many is not learned from
GOOD, BAD = ("good", "1", "true"), ("bad", "0", "false")


class Seeds(NamedTuple):
    """Labelled texts in order of their hash; ``good`` and ``held_out`` bool (seeds,)."""

    texts: list[str]
    good: np.ndarray
    held_out: np.ndarray
    rejected: list[Rejected]


def read_seeds(source: Source) -> Seeds:
    """Records with ``text`` and ``label`` (good, bad; 1, 0; true, false), or in a folder named good or bad.

    Raises:
        UserError: as `read_records`, or one of the two is missing.
    """
    records, rejected = read_records(source)
    found: dict[bytes, tuple[str, bool]] = {}
    for record in records:
        label, text = _label(record), record.value.get("text")
        if label is None or not isinstance(text, str) or not text.strip():
            reason = "no text" if label is not None else "label is neither good nor bad"
            rejected.append(Rejected(record.file, record.line, reason, excerpt(record.value.get("label"))))
            continue
        found[hashlib.sha256(text.encode("utf-8", "replace")).digest()] = text, label
    ordered = [found[key] for key in sorted(found)]
    held_out = np.array([int.from_bytes(key[-4:], "big") % HELD_OUT == 0 for key in sorted(found)], bool)
    good = np.array([label for _, label in ordered], bool)
    if len(set(good[~held_out].tolist())) < 2:
        raise UserError(
            f"{source.path}: {int(good.sum())} good and {int((~good).sum())} bad texts; a classifier needs some of "
            'both. A record has "text" and "label": "good" or "bad", or stands in a folder good or bad.'
        )
    return Seeds([text for text, _ in ordered], good, held_out, rejected)


def _label(record: Record) -> bool | None:
    label = record.value.get("label")
    folders = [part for part in PurePath(record.file).parts[:-1] if part in ("good", "bad")]
    if label is None:
        label = folders[-1] if folders else ""
    said = str(label).lower() if isinstance(label, str | int) else ""
    return True if said in GOOD else False if said in BAD else None


def fit(seeds: Seeds) -> np.ndarray:
    """float64 (BUCKETS + 1,), the last one the bias: learned from the seeds that are not held out, each class as much
    as the other."""
    learned = ~seeds.held_out
    column = texts(strings([t for t, use in zip(seeds.texts, learned, strict=True) if use]))
    good = seeds.good[learned].astype(np.float64)
    share = good.mean()
    weights = np.where(good > 0, 0.5 / share, 0.5 / (1 - share))
    return _fit(column.data, column.offsets, fold_table(), good, weights, EPOCHS, RATE, BUCKETS)


def scores(documents: Texts, classifier: np.ndarray, progress: Callable[[int], None] = lambda n: None) -> np.ndarray:
    """float64 (documents,): how likely each is a good one, to six digits."""
    out = np.zeros(len(documents.offsets) - 1)

    def work(first: int, last: int) -> int:
        _score(documents.data, documents.offsets, first, last, fold_table(), classifier, out)
        return last - first

    for done in in_threads(work, documents):
        progress(done)
    return np.round(out, 6)


def held_out_auc(seeds: Seeds, classifier: np.ndarray) -> float | None:
    """How often a good held-out seed has a higher score than a bad one, a tie being half; None: one kind is missing."""
    column = texts(strings(seeds.texts))
    found = scores(column, classifier)[seeds.held_out]
    good, bad = (found[seeds.good[seeds.held_out] == kind] for kind in (True, False))
    if not len(good) or not len(bad):
        return None
    bad = np.sort(bad)
    below = np.searchsorted(bad, good, "left") + np.searchsorted(bad, good, "right")
    return round(float(below.sum() / 2 / len(good) / len(bad)), 6)


@kernel
def _features(data, start, stop, fold, words, features, buckets):
    """Buckets of the words and of the pairs of neighbours; how many."""
    count = hash_words(data, start, stop, fold, words)
    for k in range(count):
        features[k] = np.int64(words[k] % np.uint64(buckets))
        if k > 0:
            features[count + k - 1] = np.int64(mix(extend(words[k - 1], words[k])) % np.uint64(buckets))
    return max(0, 2 * count - 1)


@kernel
def _probability(classifier, features, count, buckets):
    total = 0.0
    for k in range(count):
        total += classifier[features[k]]
    return 1 / (1 + np.exp(-(classifier[buckets] + total / np.sqrt(max(1, count)))))


@kernel
def _fit(data, offsets, fold, good, weights, epochs, rate, buckets):
    classifier, squares = np.zeros(buckets + 1), np.full(buckets + 1, 1e-8)
    words, features = np.empty(data.shape[0] + 1, np.uint64), np.empty(2 * data.shape[0] + 2, np.int64)
    for _ in range(epochs):
        for i in range(offsets.shape[0] - 1):
            count = _features(data, offsets[i], offsets[i + 1], fold, words, features, buckets)
            error = (_probability(classifier, features, count, buckets) - good[i]) * weights[i]
            features[count] = buckets
            for k in range(count + 1):
                step = error if k == count else error / np.sqrt(count)
                squares[features[k]] += step * step
                classifier[features[k]] -= rate * step / np.sqrt(squares[features[k]])
    return classifier


@kernel
def _score(data, offsets, first, last, fold, classifier, out):
    longest = 0
    for i in range(first, last):
        longest = max(longest, offsets[i + 1] - offsets[i])
    words, features = np.empty(longest + 1, np.uint64), np.empty(2 * longest + 2, np.int64)
    buckets = classifier.shape[0] - 1
    for i in range(first, last):
        count = _features(data, offsets[i], offsets[i + 1], fold, words, features, buckets)
        out[i] = _probability(classifier, features, count, buckets)
