"""Decide which documents stay: the measures, the limit of each, and the first limit that a document breaks.

Quality and repetition limits: Rae et al. 2021, arXiv 2112.11446, appendix A1.1 and table A1. A rule of your own is a
measure in MEASURES, and its limit in `filter.limits` of params.yaml: see docs/extending.md.
"""

import hashlib
from collections.abc import Callable
from math import inf
from typing import NamedTuple

import numpy as np

from stages.contract.errors import UserError
from stages.contract.params import Filter
from stages.corpus.filtering.c4 import clean, least_sentences
from stages.corpus.filtering.fineweb import web_measures
from stages.corpus.filtering.gopher import QUALITY, REPETITION, gopher_measures
from stages.corpus.filtering.quality import quality_scores
from stages.corpus.text.arrays import strings
from stages.corpus.text.characters import classes
from stages.corpus.text.words import Texts, fold_table, texts
from stages.corpus.text.writing import EVERYDAY, Writing, closed, spaced

# Shares of lines, paragraphs or characters, by measure: see `filter.repetition`.
REPETITION_LIMITS = dict(
    zip(REPETITION, (0.30, 0.30, 0.20, 0.20, 0.20, 0.18, 0.16, 0.15, 0.14, 0.13, 0.12, 0.11, 0.10), strict=True)
)


class Measures(NamedTuple):
    """Measures of documents: their names, and the function that returns float64 (documents,) for each name."""

    names: tuple[str, ...]
    measure: Callable[[Texts, Filter], dict[str, np.ndarray]]


def _gopher(documents: Texts, params: Filter) -> dict[str, np.ndarray]:
    return gopher_measures(documents, params.definitions == "published")


# Measured if one of the names has a limit.
MEASURES = (Measures(QUALITY + REPETITION, _gopher),)
# Rules for English only: words of other languages are longer (Finnish) or shorter (Korean, Vietnamese), and no library
# in use here has stop words for them.
ENGLISH_RULES = ("mean_word_length", "stop_words")
# Rules that do not apply where each character is a word: five to nine characters are less than a phrase.
WORD_RUNS = tuple(f"duplicate_{n}_grams" for n in range(5, 10))


class Limit(NamedTuple):
    """A document stays while low <= value <= high."""

    low: float
    high: float


class RuleDecision(NamedTuple):
    """``kept`` bool (documents,); ``reasons`` and ``values`` (float64) of the dropped documents, in order."""

    kept: np.ndarray
    reasons: list[str]
    values: np.ndarray


def limits(params: Filter) -> dict[str, Limit]:
    """Return the limits by measure, in the order in which they are tried; `filter.limits` replaces or adds some."""
    by_measure = {
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
        by_measure |= {name: Limit(-inf, high) for name, high in REPETITION_LIMITS.items()}
    own = {
        name: Limit(-inf if low is None else low, inf if high is None else high)
        for name, (low, high) in params.limits.items()
    }
    return by_measure | {"contamination": Limit(-inf, params.max_contamination)} | own


def check_limits(params: Filter) -> None:
    """Raise UserError for a name in `filter.limits` that no measure has."""
    names = [name for measures in MEASURES for name in measures.names]
    if unknown := [name for name in params.limits if name not in names]:
        raise UserError(f"filter.limits: {unknown[0]!r} is no measure. Known are {', '.join(names)}.")


def page_limits(params: Filter) -> dict[str, Limit]:
    """Return the limits of `page_measures`, in the order in which they are tried."""
    by_measure = {}
    if params.c4.apply:
        by_measure["c4_phrases"] = Limit(-inf, 0)
        by_measure["c4_sentences"] = Limit(least_sentences(params.c4), inf)
    if params.fineweb.apply:
        by_measure["line_endings"] = Limit(params.fineweb.min_line_endings, inf)
        by_measure["short_lines"] = Limit(-inf, params.fineweb.max_short_lines)
        by_measure["repeated_line_characters"] = Limit(-inf, params.fineweb.max_repeated_line_characters)
        by_measure["newlines"] = Limit(-inf, params.fineweb.max_newlines)
    return by_measure | ({"quality": Limit(params.min_quality, inf)} if params.min_quality else {})


def word_measures(documents: Texts, params: Filter, how: Writing = EVERYDAY) -> dict[str, np.ndarray]:
    """Measure documents of one way of writing by MEASURES; NaN, which breaks no limit, where a rule does not apply."""
    documents, limited = documents if how.spaces else spaced(documents), limits(params)
    values: dict[str, np.ndarray] = {}
    for names, measure in MEASURES:
        if not limited.keys().isdisjoint(names):
            values |= measure(documents, params)
    inapplicable = (() if how.english else ENGLISH_RULES) + (() if how.spaces else WORD_RUNS)
    return values | {name: np.full_like(values[name], np.nan) for name in inapplicable if name in values}


class Pages(NamedTuple):
    """Documents after C4's rules, and their measures.

    ``values`` float64 (documents,) by name, as `page_limits`, and ``quality`` with a classifier; ``lines``, of the
    texts ``before``: see `clean`.
    """

    documents: Texts
    values: dict[str, np.ndarray]
    before: Texts
    lines: np.ndarray | None


def page_measures(documents: Texts, params: Filter, classifier: np.ndarray | None, how: Writing = EVERYDAY) -> Pages:
    """Apply C4's rules to documents of one way of writing and measure the remaining text."""
    values: dict[str, np.ndarray] = {}
    lines = None
    before = left = documents if how.spaces else spaced(documents)
    if params.c4.apply:
        left, values, lines = clean(before, params.c4, how)
        if not how.marks:  # ends of sentences are unknown
            values["c4_sentences"] = np.where(values["c4_sentences"] > 0, np.inf, 0.0)
        documents = left if how.spaces else closed(left)
    if params.fineweb.apply:
        values |= web_measures(left, params.fineweb.short_line)
        if not how.marks:
            values["line_endings"] = np.full_like(values["line_endings"], np.nan)
    if classifier is not None:
        values["quality"] = quality_scores(documents, classifier)
    return Pages(documents, values, before, lines)


# Some of each class of characters that the rules distinguish.
_PROBE = (
    "\tThe quick\u2014brown fox, \u201cof\u201d (and) The have x... \u2022\r\n- to be\u2026 #1 {No. 5} e\u0301 \u65e5 "
    "\U0001d538 e.g. U.S.A. Yes! No? with\u2028that lorem ipsum [3] Javascript\n\n\n- to be\u2026 #1 {No. 5} e.g. "
    "U.S.A. Yes! No? with the quick brown fox of and have x\n \n}\n}\n- to be... with the quick brown fox of and have\n"
)


def version(params: Filter) -> str:
    """Return the version of the measures, which changes with a definition of a measure in use, not with a limit.

    It has the definitions' name, the kind of words, and a digest of the values of a probe and of the tables of
    characters.
    """
    probe = texts(strings([_PROBE, _PROBE.upper()]))
    values = word_measures(probe, params)
    unlimited = params.model_copy(update={"c4": params.c4.model_copy(update={"min_sentences": 10**6})})
    pages = page_measures(probe, unlimited, None)
    tables = classes().tobytes() + fold_table().tobytes()
    digest = hashlib.blake2b(tables + pages.documents.data.tobytes(), digest_size=4)
    measured = [(name, of_probe.round(9).tolist()) for name, of_probe in (values | pages.values).items()]
    digest.update(repr(measured).encode())
    return f"{params.definitions}/whitespace-words/{digest.hexdigest()}"


def decide_documents(measures: dict[str, np.ndarray], limits: dict[str, Limit]) -> RuleDecision:
    """Find each document's first broken limit; ``measures``: float64 (documents,) by name."""
    values = np.stack([measures[name] for name in limits], axis=1)
    low = np.array([limit.low for limit in limits.values()])
    high = np.array([limit.high for limit in limits.values()])
    broken = (values < low) | (values > high)
    dropped = np.flatnonzero(broken.any(axis=1))
    first = broken[dropped].argmax(axis=1)
    names = list(limits)
    return RuleDecision(np.logical_not(broken.any(axis=1)), [names[k] for k in first], values[dropped, first])
