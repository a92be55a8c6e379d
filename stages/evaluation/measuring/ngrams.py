"""Trigram language models as honest baselines: interpolated Kneser-Ney over any alphabet of integers.

With n the trigram counts, N(.bc) the number of different symbols seen before bc, and D one discount a level
(Kneser and Ney 1995; interpolated form in Chen and Goodman 1998, Harvard TR-10-98):

    p(c | a b) = (n(abc) - D3)+ / n(ab.)    + D3 N(ab.)  / n(ab.)   p(c | b)
    p(c | b)   = (N(.bc) - D2)+ / N(.b.)    + D2 |b.|    / N(.b.)   p(c)
    p(c)       = (N(.c)  - D1)+ / N(..)     + D1 |.|     / N(..)    1 / V

where |b.| counts the different continuations and a level whose context was never seen passes on the one below.
Each p(. | context) sums to one over the V symbols, and none is zero.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Level:
    """One order of the model. ``keys`` (entries,) and ``contexts`` (contexts,) are sorted int64."""

    keys: np.ndarray
    kept: np.ndarray  # count - D of each key, float64
    contexts: np.ndarray  # key // V
    total: np.ndarray  # sum of the counts after a context, float64
    spared: np.ndarray  # D x number of different keys after a context, float64


@dataclass(frozen=True)
class Trigram:
    """A trigram model, with its bigram and unigram models to fall back on."""

    vocabulary: int
    levels: tuple[Level, Level, Level]  # symbols alone, pairs, triples


def fit_ngrams(keys: np.ndarray, counts: np.ndarray, vocabulary: int) -> Trigram:
    """Fit a trigram model to trigram counts.

    Args:
        keys: (a V + b) V + c for each different trigram, ascending, int64; V**3 must be below 2**63.
        counts: how often each occurs, positive.
    """
    pairs, before_pair = np.unique(keys % vocabulary**2, return_counts=True)
    symbols, before_symbol = np.unique(pairs % vocabulary, return_counts=True)
    levels = (_level(symbols, before_symbol, vocabulary), _level(pairs, before_pair, vocabulary))
    return Trigram(vocabulary, (*levels, _level(keys, counts, vocabulary)))


def probabilities(model: Trigram, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """p(c | a b) for int arrays of one shape: float64, in (0, 1]."""
    a, b, c = (np.asarray(x, dtype=np.int64) for x in (a, b, c))
    v = model.vocabulary
    p = np.full(c.shape, 1.0 / v)
    for level, key in zip(model.levels, (c, b * v + c, (a * v + b) * v + c), strict=True):
        at, seen = _find(level.keys, key)
        context, known = _find(level.contexts, key // v)
        mixed = (np.where(seen, level.kept[at], 0.0) + level.spared[context] * p) / level.total[context]
        p = np.where(known, mixed, p)
    return p


def log2_likelihood(model: Trigram, symbols: np.ndarray, end: int) -> float:
    """log2 of the probability of ``symbols``, the first of which are predicted from the symbol ``end``."""
    if len(symbols) == 0:
        return 0.0
    stream = np.concatenate([[end, end], np.asarray(symbols, dtype=np.int64)])
    return float(np.log2(probabilities(model, stream[:-2], stream[1:-1], stream[2:])).sum())


def count_rows(rows: np.ndarray, filled: np.ndarray, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Trigram keys and counts within each row.

    Args:
        rows: packed tokens, shape (rows, T); documents are closed by an end token, which is a symbol like any other.
        filled: tokens of each row that are no padding, shape (rows,).
    """
    rows = np.asarray(rows, dtype=np.int64)
    keys = (rows[:, :-2] * vocabulary + rows[:, 1:-1]) * vocabulary + rows[:, 2:]
    inside = np.arange(2, rows.shape[1]) < np.asarray(filled)[:, None]
    return np.unique(keys[inside], return_counts=True)


BYTES = 257  # the alphabet of the byte models: 256 bytes and the end of a document
_CHUNK = 1 << 24  # symbols counted at once


def count_bytes(texts: Iterable[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Byte trigram keys and counts of documents, each closed by symbol 256; memory does not grow with the text."""
    dense = np.zeros(BYTES**3, dtype=np.int64)
    chunk: list[np.ndarray] = [np.array([256])]
    size = 0
    for text in texts:
        chunk += [np.frombuffer(text, dtype=np.uint8).astype(np.int16), np.array([256], dtype=np.int16)]
        size += len(text) + 1
        if size >= _CHUNK:
            dense += _count_stream(np.concatenate(chunk))
            chunk, size = [np.array([256])], 0
    dense += _count_stream(np.concatenate(chunk))
    keys = np.flatnonzero(dense)
    return keys, dense[keys]


def unigram_log2(keys: np.ndarray, counts: np.ndarray, vocabulary: int) -> np.ndarray:
    """log2 p of each symbol, shape (vocabulary,), from trigram counts with one added to each (Laplace)."""
    seen = np.bincount(keys % vocabulary, weights=counts, minlength=vocabulary) + 1
    return np.log2(seen / seen.sum())


def _count_stream(symbols: np.ndarray) -> np.ndarray:
    symbols = symbols.astype(np.int64)
    keys = (symbols[:-2] * BYTES + symbols[1:-1]) * BYTES + symbols[2:]
    return np.bincount(keys, minlength=BYTES**3)


def _level(keys: np.ndarray, counts: np.ndarray, vocabulary: int) -> Level:
    ones, twos = int((counts == 1).sum()), int((counts == 2).sum())
    # Without both, the estimate is 0 or 1: it would leave nothing for unseen n-grams, or nothing for those seen once.
    discount = ones / (ones + 2 * twos) if ones and twos else 0.5
    contexts, first = np.unique(keys // vocabulary, return_index=True)
    total = np.add.reduceat(counts, first) if len(keys) else np.zeros(0)
    different = np.diff(np.append(first, len(keys)))
    return Level(keys, counts - discount, contexts, total.astype(np.float64), discount * different)


def _find(table: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of each value in the sorted ``table`` (any index if absent) and whether it is there."""
    at = np.minimum(np.searchsorted(table, values), len(table) - 1)
    return at, table[at] == values
