"""Which documents stay: the limits of every measure, and the first one a document breaks.

Quality and repetition limits: Rae et al. 2021, arXiv 2112.11446, appendix A1.1 and table A1.
"""

import hashlib
from math import inf
from typing import NamedTuple

import numpy as np

from stages.contract.params import Filter
from stages.corpus.arrays import strings
from stages.corpus.characters import classes
from stages.corpus.measures import measure
from stages.corpus.pages import clean, least_sentences, web_measures
from stages.corpus.quality import scores
from stages.corpus.words import Texts, fold_table, texts

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


def page_limits(params: Filter) -> dict[str, Limit]:
    """The limits of what `page_measures` finds, in the order in which they are tried."""
    found = {}
    if params.c4.apply:
        found["c4_phrases"] = Limit(-inf, 0)
        found["c4_sentences"] = Limit(least_sentences(params.c4), inf)
    if params.fineweb.apply:
        found["line_endings"] = Limit(params.fineweb.min_line_endings, inf)
        found["short_lines"] = Limit(-inf, params.fineweb.max_short_lines)
        found["repeated_line_characters"] = Limit(-inf, params.fineweb.max_repeated_line_characters)
        found["newlines"] = Limit(-inf, params.fineweb.max_newlines)
    return found | ({"quality": Limit(params.min_quality, inf)} if params.min_quality else {})


def page_measures(
    documents: Texts, params: Filter, classifier: np.ndarray | None
) -> tuple[Texts, dict[str, np.ndarray], np.ndarray | None]:
    """``documents`` as C4's rules leave them, what is measured of that: as `page_limits`, and ``quality`` where there
    is a ``classifier``; and the lines C4's rules took, see `clean`."""
    values, taken = {}, None
    if params.c4.apply:
        documents, values, taken = clean(documents, params.c4)
    if params.fineweb.apply:
        values |= web_measures(documents, params.fineweb.short_line)
    if classifier is not None:
        values["quality"] = scores(documents, classifier)
    return documents, values, taken


# A little of everything the rules tell apart.
_PROBE = (
    "\tThe quick\u2014brown fox, \u201cof\u201d (and) The have x... \u2022\r\n- to be\u2026 #1 {No. 5} e\u0301 \u65e5 "
    "\U0001d538 e.g. U.S.A. Yes! No? with\u2028that lorem ipsum [3] Javascript\n\n\n- to be\u2026 #1 {No. 5} e.g. "
    "U.S.A. Yes! No? with the quick brown fox of and have x\n \n}\n}\n- to be... with the quick brown fox of and have\n"
)


def version(params: Filter) -> str:
    """What the values that the limits are for mean: the definitions' name, the kind of words, and a digest of what the
    rules in use measure and of the tables of characters. It changes with a definition, and not with a limit."""
    probe = texts(strings([_PROBE, _PROBE.upper()]))
    values = measure(probe, params.definitions == "published")
    unlimited = params.model_copy(update={"c4": params.c4.model_copy(update={"min_sentences": 10**6})})
    cleaned, more, _ = page_measures(probe, unlimited, None)
    digest = hashlib.blake2b(classes().tobytes() + fold_table().tobytes() + cleaned.data.tobytes(), digest_size=4)
    digest.update(repr([(name, found.round(9).tolist()) for name, found in (values | more).items()]).encode())
    return f"{params.definitions}/whitespace-words/{digest.hexdigest()}"


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
