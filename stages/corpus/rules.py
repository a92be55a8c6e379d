"""Which documents stay: the limits of every measure, and the first one a document breaks.

Quality and repetition limits: Rae et al. 2021, arXiv 2112.11446, appendix A1.1 and table A1.
"""

from math import inf
from typing import NamedTuple

import numpy as np

from stages.contract.params import Filter

# Shares of lines, paragraphs or characters, by measure.
REPETITION_LIMITS = {
    "duplicate_lines": 0.30,
    "duplicate_paragraphs": 0.30,
    "duplicate_line_characters": 0.20,
    "duplicate_paragraph_characters": 0.20,
    "top_2_gram": 0.20,
    "top_3_gram": 0.18,
    "top_4_gram": 0.16,
    "duplicate_5_grams": 0.15,
    "duplicate_6_grams": 0.14,
    "duplicate_7_grams": 0.13,
    "duplicate_8_grams": 0.12,
    "duplicate_9_grams": 0.11,
    "duplicate_10_grams": 0.10,
}


class Limit(NamedTuple):
    """A document stays while low <= value <= high."""

    low: float
    high: float


class Decision(NamedTuple):
    """``kept`` bool (documents,); ``reasons`` and ``values`` of the dropped ones, in order."""

    kept: np.ndarray
    reasons: list[str]
    values: np.ndarray  # float64


def limits(params: Filter) -> dict[str, Limit]:
    """The limits by measure, in the order in which they are tried."""
    found = {
        "language": Limit(params.min_language_score, inf),
        "words": Limit(params.min_words, params.max_words),
        "mean_word_length": Limit(params.min_mean_word_length, params.max_mean_word_length),
        "symbol_ratio": Limit(-inf, params.max_symbol_ratio),
        "bullet_lines": Limit(-inf, params.max_bullet_lines),
        "ellipsis_lines": Limit(-inf, params.max_ellipsis_lines),
        "alphabetic_words": Limit(params.min_alphabetic_words, inf),
        "stop_words": Limit(params.min_stop_words, inf),
    }
    if params.repetition:
        found |= {name: Limit(-inf, high) for name, high in REPETITION_LIMITS.items()}
    return found | {"contamination": Limit(-inf, params.max_contamination)}


def decide(measures: dict[str, np.ndarray], limits: dict[str, Limit]) -> Decision:
    """Each document's first broken limit. ``measures``: float64 (documents,) by name."""
    values = np.stack([measures[name] for name in limits], axis=1)
    low = np.array([limit.low for limit in limits.values()])
    high = np.array([limit.high for limit in limits.values()])
    broken = (values < low) | (values > high)
    dropped = np.flatnonzero(broken.any(axis=1))
    first = broken[dropped].argmax(axis=1)
    names = list(limits)
    return Decision(~broken.any(axis=1), [names[k] for k in first], values[dropped, first])
