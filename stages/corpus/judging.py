"""Documents judged by the rules: what stays, as the rules leave it, what goes, and why."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from stages.contract.params import Filter
from stages.corpus.arrays import flags, numbers, strings
from stages.corpus.contamination import HeldOut, overlap
from stages.corpus.language import language_scores
from stages.corpus.masking import mask
from stages.corpus.measures import measure
from stages.corpus.rules import decide, limits, page_limits, page_measures
from stages.corpus.words import Texts, column, texts

EXCERPT = 800  # characters of a dropped document that are kept for examples
LINES, LINE = 5, 200  # of lines that each rule took from some documents, and characters of each


class Judge(NamedTuple):
    """What documents are judged by: the rules, what is held out, and the quality classifier if there is one."""

    params: Filter
    held_out: HeldOut
    classifier: np.ndarray | None


class Judged(NamedTuple):
    """``kept``: id, text, source of what stays, cleaned and masked; ``gone``: id, source, reason, value, excerpt.

    ``figures``: ``sizes`` int64 (documents,), bytes; ``before`` and ``after`` float64 (held-out items,), the greatest
    overlap with any document, and with one that stays; ``scores`` float64, of quality where there is a classifier, of
    what the other rules left; ``masked`` int64 (kinds of filter.mask,), how many of each were. Where C4's rules apply,
    ``lines`` int64 (1 + C4_LINES,), how many there were and each rule took, and ``line_examples`` str (C4_LINES,
    LINES), "" for none.
    """

    kept: pa.Table
    gone: pa.Table
    figures: dict[str, np.ndarray]


def judge(table: pa.Table, by: Judge) -> Judged:
    """``table``: id, text, source."""
    params, documents = by.params, texts(table["text"])
    values = measure(documents, params.definitions == "published")
    found = overlap(documents, by.held_out)
    values["contamination"], values["language"] = found.documents, np.ones(len(table))
    if params.min_language_score:
        values["language"] = language_scores(table["text"].to_pylist(), params.languages)
    left = decide(values, limits(params)).kept
    kept = table.filter(flags(left))
    before = texts(kept["text"])
    pages, measured, taken = page_measures(before, params, by.classifier)
    for name, of_left in measured.items():
        values[name] = np.full(len(table), np.nan)  # which breaks no limit
        values[name][left] = of_left
    decision = decide(values, limits(params) | page_limits(params))
    if params.c4.apply:
        kept = kept.set_column(1, "text", column(pages))
    kept, masked = _masked(kept.filter(flags(decision.kept[left])), params.mask)
    figures = {
        "sizes": np.diff(documents.offsets),
        "before": found.items,
        "after": overlap(texts(kept["text"]), by.held_out).items,
        "scores": measured.get("quality", np.zeros(0)),
        "masked": masked,
    } | ({} if taken is None else _lines(before, taken))
    return Judged(kept, _gone(table, decision), figures)


def _lines(documents: Texts, taken: np.ndarray) -> dict[str, np.ndarray]:
    """What C4's rules took, in short; ``taken`` as `clean` gives it."""
    examples = np.full((taken.shape[1] - 1, LINES), "", f"<U{LINE}")
    for rule, found in enumerate(examples):
        of_rule = taken[:, rule + 1]
        for k, row in enumerate(np.flatnonzero(of_rule[:, 0])[:LINES]):
            _, start, stop = of_rule[row]
            found[k] = documents.data[start:stop][: 4 * LINE].tobytes().decode("utf-8", "ignore")[:LINE]
    return {"lines": taken[:, :, 0].sum(axis=0), "line_examples": examples}


def _gone(table: pa.Table, decision) -> pa.Table:
    gone = table.filter(flags(~decision.kept))
    excerpts = strings([text[:EXCERPT] for text in gone["text"].to_pylist()])
    columns = [gone["id"], gone["source"], strings(decision.reasons), numbers(decision.values.round(6)), excerpts]
    return pa.table(columns, ["id", "source", "reason", "value", "excerpt"])


def _masked(kept: pa.Table, kinds: list[str]) -> tuple[pa.Table, np.ndarray]:
    """``kept`` with ``kinds`` masked in its texts, and int64 (kinds,): how many of each were."""
    if not kinds:
        return kept, np.zeros(0, np.int64)
    masked, total = [], dict.fromkeys(kinds, 0)
    for text in kept["text"].to_pylist():
        text, found = mask(text, kinds)
        masked.append(text)
        for kind, count in found.items():
            total[kind] += count
    return kept.set_column(1, "text", strings(masked)), np.array(list(total.values()), np.int64)
