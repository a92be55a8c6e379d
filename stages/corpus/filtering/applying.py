"""Apply the filter rules to documents: which are kept, in which form, which are dropped, and why."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from stages.contract.params import Filter
from stages.corpus.filtering.c4 import C4_LINES
from stages.corpus.filtering.contamination import NgramIndex, ngram_overlap
from stages.corpus.filtering.language import Detected, detect_language
from stages.corpus.filtering.masking import mask
from stages.corpus.filtering.rules import (
    Pages,
    RuleDecision,
    decide_documents,
    limits,
    page_limits,
    page_measures,
    word_measures,
)
from stages.corpus.text.arrays import flags, numbers, strings
from stages.corpus.text.words import Texts, column, texts
from stages.corpus.text.writing import ENGLISH, EVERYDAY, SEPARATOR, Writing, writing

EXCERPT = 800  # characters of a dropped document, for examples
LINES, LINE = 5, 200  # lines that each rule dropped, for examples, and characters of each


class Judge(NamedTuple):
    """The rules' parameters, the held-out items, and the quality classifier, if there is one."""

    params: Filter
    held_out: NgramIndex
    classifier: np.ndarray | None


class Judged(NamedTuple):
    """The documents that the rules keep and drop, and figures.

    ``kept``: id, text, source, cleaned and masked; ``dropped``: id, source, reason, value, excerpt; ``figures``:
    ``sizes`` int64 (documents,), bytes; ``before`` and ``after`` float64 (held-out items,), the greatest overlap with
    any document, and with a kept one; ``scores`` float64, quality of the documents that the other rules keep, if there
    is a classifier; ``masked`` int64 (kinds of filter.mask,), counts. With C4's rules also ``lines`` int64
    (1 + C4_LINES,), all lines and those that each rule dropped, and ``line_examples`` str (C4_LINES, LINES), "" for
    none.
    """

    kept: pa.Table
    dropped: pa.Table
    figures: dict[str, np.ndarray]


def judge(table: pa.Table, by: Judge) -> Judged:
    """Judge the documents of ``table`` (id, text, source) by the rules on words, then the rest by those on pages."""
    params, documents = by.params, texts(table["text"])
    languages, language_scores = _languages(table, params)
    values = _together(
        [(rows, word_measures(some, params, how)) for how, rows, some in _by_writing(documents, languages)], len(table)
    )
    overlap = ngram_overlap(documents, by.held_out)
    values["contamination"], values["language"] = overlap.documents, language_scores
    passed = decide_documents(values, limits(params)).kept
    kept = table.filter(flags(passed))
    kept_languages = [language for language, stays in zip(languages, passed, strict=True) if stays]
    pages = [
        (rows, page_measures(some, params, by.classifier, how))
        for how, rows, some in _by_writing(texts(kept["text"]), kept_languages)
    ]
    measured = _together([(rows, page.values) for rows, page in pages], len(kept))
    for name, of_passed in measured.items():
        values[name] = np.full(len(table), np.nan)  # which breaks no limit
        values[name][passed] = of_passed
    decision = decide_documents(values, limits(params) | page_limits(params))
    if params.c4.apply:
        kept = kept.set_column(1, "text", _in_order(pages))
    kept, masked = _masked(kept.filter(flags(decision.kept[passed])), params.mask)
    figures = {
        "sizes": np.diff(documents.offsets),
        "before": overlap.items,
        "after": ngram_overlap(texts(kept["text"]), by.held_out).items,
        "scores": measured.get("quality", np.zeros(0)),
        "masked": masked,
    } | (_lines([page for _, page in pages]) if params.c4.apply else {})
    return Judged(kept, _dropped(table, decision), figures)


def _languages(table: pa.Table, params: Filter) -> Detected:
    """Detect each document's language; without a limit on it and with English alone, all count as English."""
    if params.min_language_score or set(params.languages) - {ENGLISH}:
        return detect_language(table["text"].to_pylist(), params.languages)
    return Detected([ENGLISH] * len(table), np.ones(len(table)))


def _by_writing(documents: Texts, languages: list[str]) -> list[tuple[Writing, np.ndarray, Texts]]:
    """Group documents by writing; return for each group its rows (int64) and texts."""
    ways: dict[Writing, list[int]] = {}
    for row, language in enumerate(languages):
        ways.setdefault(writing(language or ENGLISH), []).append(row)
    if len(ways) < 2:
        return [(how, np.arange(len(languages)), documents) for how in ways or [EVERYDAY]]
    whole = column(documents)
    return [(how, np.array(rows), texts(whole.take(numbers(np.array(rows))))) for how, rows in ways.items()]


def _together(parts: list[tuple[np.ndarray, dict[str, np.ndarray]]], count: int) -> dict[str, np.ndarray]:
    """Join the values of groups of rows to those of all ``count`` documents, by name."""
    values = {name: np.empty(count) for name in parts[0][1]}
    for rows, of_rows in parts:
        for name in values:
            values[name][rows] = of_rows[name]
    return values


def _in_order(pages: list[tuple[np.ndarray, Pages]]) -> pa.Array:
    """Return the texts of all pages in the order of their documents."""
    order = np.argsort(np.concatenate([rows for rows, _ in pages]))
    return pa.concat_arrays([column(page.documents) for _, page in pages]).take(numbers(order))


def _lines(pages: list[Pages]) -> dict[str, np.ndarray]:
    """Return ``lines`` and ``line_examples`` of `Judged`."""
    examples = np.full((len(C4_LINES), LINES), "", f"<U{LINE}")
    for rule, of_rule in enumerate(examples):
        shown = [line for page in pages for line in _lines_of(page, rule + 1)][:LINES]
        of_rule[: len(shown)] = shown
    lines = sum(
        (page.lines[:, :, 0].sum(axis=0) for page in pages if page.lines is not None),
        np.zeros(1 + len(C4_LINES), np.int64),
    )
    return {"lines": lines, "line_examples": examples}


def _lines_of(page: Pages, rule: int) -> list[str]:
    """Return the first line that a rule dropped from each of the first LINES documents."""
    assert page.lines is not None
    of_rule, data = page.lines[:, rule], page.before.data
    first = [data[start:stop][: 4 * LINE] for _, start, stop in of_rule[np.flatnonzero(of_rule[:, 0])[:LINES]]]
    return [line[line != SEPARATOR].tobytes().decode("utf-8", "ignore")[:LINE] for line in first]


def _dropped(table: pa.Table, decision: RuleDecision) -> pa.Table:
    dropped = table.filter(flags(~decision.kept))
    excerpts = strings([text[:EXCERPT] for text in dropped["text"].to_pylist()])
    values = numbers(decision.values.round(6))
    columns = [dropped["id"], dropped["source"], strings(decision.reasons), values, excerpts]
    return pa.table(columns, ["id", "source", "reason", "value", "excerpt"])


def _masked(kept: pa.Table, kinds: Sequence[str]) -> tuple[pa.Table, np.ndarray]:
    """Mask ``kinds`` in the texts of ``kept``; also return their counts, int64 (kinds,)."""
    if not kinds:
        return kept, np.zeros(0, np.int64)
    masked, total = [], dict.fromkeys(kinds, 0)
    for text in kept["text"].to_pylist():
        text, counts = mask(text, kinds)
        masked.append(text)
        for kind, count in counts.items():
            total[kind] += count
    return kept.set_column(1, "text", strings(masked)), np.array(list(total.values()), np.int64)
