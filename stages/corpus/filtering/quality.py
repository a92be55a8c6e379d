"""Score documents by a quality classifier learned from labeled texts: linear, on hashed words and pairs of words.

It is fastText (Joulin et al. 2016, arXiv 1607.01759) without the hidden layer: a sigmoid of the features' weights,
summed and divided by the root of their number. AdaGrad fits it, one document at a time in the order of their hashes:
the result depends neither on the order of the files nor on the number of threads.
"""

import hashlib
from pathlib import PurePath
from typing import NamedTuple

import numpy as np

from stages.contract.errors import UserError
from stages.contract.params import Source
from stages.corpus.reading.records import read_records
from stages.corpus.reading.rejections import Record, Rejected, Rejections, excerpt
from stages.corpus.reading.sources import has_files
from stages.corpus.reading.tables import TEXTS
from stages.corpus.text.arrays import strings
from stages.corpus.text.folding import folded
from stages.corpus.text.hashing import extend, mix
from stages.corpus.text.kernels import kernel
from stages.corpus.text.words import Texts, fold_table, hash_words, in_threads, longest_text, texts

BUCKETS = 2**18
EPOCHS, RATE = 10, 0.5
HELD_OUT = 10  # one seed in so many is not trained on
GOOD, BAD = ("good", "1", "true"), ("bad", "0", "false")


class Seeds(NamedTuple):
    """Labeled texts, each once, in order of their hash; ``good`` and ``held_out`` bool (seeds,); ``read``: records."""

    texts: list[str]
    good: np.ndarray
    held_out: np.ndarray
    rejected: Rejections
    read: int


def find_seeds(source: Source, min_quality: float) -> Seeds | None:
    """Return the seeds of ``source``, or None if it has no file and ``min_quality``, the least score, is 0.

    Raises:
        UserError: as `read_seeds`; or ``min_quality`` needs seeds, and there is no file.
    """
    if has_files(source):
        return read_seeds(source)
    if min_quality:
        raise UserError(
            f"filter.min_quality is {min_quality} and data.quality has no texts to learn from: no file of "
            f"{source.path} matches {source.files!r}. See data/quality/README.md."
        )
    return None


def read_seeds(source: Source) -> Seeds:
    """Read records with ``text`` and ``label`` (good, bad; 1, 0; true, false), or in a folder named good or bad.

    Raises:
        UserError: as `read_records`; or there are no good, or no bad, texts.
    """
    records, rejected = read_records(source)
    read = len(records) + len(rejected)
    labeled: dict[bytes, tuple[str, bool]] = {}
    for record in records:
        label, text = _label(record), next((record.value[name] for name in TEXTS if name in record.value), None)
        if label is None or not isinstance(text, str) or not text.strip():
            reason = "no text" if label is not None else "label is neither good nor bad"
            rejected.append(Rejected(record.file, record.line, reason, excerpt(record.value.get("label"))))
            continue
        labeled[hashlib.sha256(text.encode("utf-8", "replace")).digest()] = text, label
    ordered = [labeled[key] for key in sorted(labeled)]
    held_out = np.array([int.from_bytes(key[-4:], "big") % HELD_OUT == 0 for key in sorted(labeled)], bool)
    good = np.array([label for _, label in ordered], bool)
    if len(set(good[~held_out].tolist())) < 2:
        raise UserError(
            f"{source.path}: {int(good.sum())} good and {int((~good).sum())} bad texts; a classifier needs some of "
            'both. A record has "text" and "label": "good" or "bad", or stands in a folder good or bad.'
        )
    return Seeds([text for text, _ in ordered], good, held_out, rejected, read)


def _label(record: Record) -> bool | None:
    label = record.value.get("label")
    folders = [part for part in PurePath(record.file).parts[:-1] if part in ("good", "bad")]
    if label is None:
        label = folders[-1] if folders else ""
    name = str(label).lower() if isinstance(label, str | int) else ""
    return True if name in GOOD else False if name in BAD else None


def fit_classifier(seeds: Seeds) -> np.ndarray:
    """Fit the classifier to the seeds that are not held out, both classes with equal weight in all.

    Returns:
        float64 (BUCKETS + 1,): the weights of the features, and the bias.
    """
    trained = ~seeds.held_out
    column = folded(texts(strings([t for t, use in zip(seeds.texts, trained, strict=True) if use])))
    good = seeds.good[trained].astype(np.float64)
    share = good.mean()
    weights = np.where(good > 0, 0.5 / share, 0.5 / (1 - share))
    return _fit(column.data, column.offsets, fold_table(), good, weights, EPOCHS, RATE, BUCKETS)


def quality_scores(documents: Texts, classifier: np.ndarray) -> np.ndarray:
    """Return the probability that a document is good, float64 (documents,), to six digits."""
    documents = folded(documents)
    scores = np.zeros(len(documents.offsets) - 1)

    def work(first: int, last: int) -> None:
        _score(documents.data, documents.offsets, first, last, fold_table(), classifier, scores)

    in_threads(work, documents)
    return np.round(scores, 6)


def held_out_auc(seeds: Seeds, classifier: np.ndarray) -> float | None:
    """Return the share of pairs of held-out seeds in which the good one scores higher, a tie counting half.

    None: there is no good, or no bad, held-out seed.
    """
    scores = quality_scores(texts(strings(seeds.texts)), classifier)[seeds.held_out]
    good, bad = (scores[seeds.good[seeds.held_out] == kind] for kind in (True, False))
    if not len(good) or not len(bad):
        return None
    bad = np.sort(bad)
    below = np.searchsorted(bad, good, "left") + np.searchsorted(bad, good, "right")
    return round(float(below.sum() / 2 / len(good) / len(bad)), 6)


@kernel
def _features(
    data: np.ndarray, start: int, stop: int, fold: np.ndarray, words: np.ndarray, features: np.ndarray, buckets: int
) -> int:
    """Write the buckets of the words and of adjacent pairs to ``features``; return how many there are."""
    count = hash_words(data, start, stop, fold, words)
    for k in range(count):
        features[k] = np.int64(words[k] % np.uint64(buckets))
        if k > 0:
            features[count + k - 1] = np.int64(mix(extend(words[k - 1], words[k])) % np.uint64(buckets))
    return max(0, 2 * count - 1)


@kernel
def _probability(classifier: np.ndarray, features: np.ndarray, count: int, buckets: int) -> float:
    total = 0.0
    for k in range(count):
        total += classifier[features[k]]
    return 1 / (1 + np.exp(-(classifier[buckets] + total / np.sqrt(max(1, count)))))


@kernel
def _fit(
    data: np.ndarray, offsets: np.ndarray, fold: np.ndarray, good: np.ndarray, weights: np.ndarray, epochs: int,
    rate: float, buckets: int,
) -> np.ndarray:  # fmt: skip
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
def _score(
    data: np.ndarray, offsets: np.ndarray, first: int, last: int, fold: np.ndarray, classifier: np.ndarray,
    scores: np.ndarray,
) -> None:  # fmt: skip
    longest = longest_text(offsets, first, last)
    words, features = np.empty(longest + 1, np.uint64), np.empty(2 * longest + 2, np.int64)
    buckets = classifier.shape[0] - 1
    for i in range(first, last):
        count = _features(data, offsets[i], offsets[i + 1], fold, words, features, buckets)
        scores[i] = _probability(classifier, features, count, buckets)
