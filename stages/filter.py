"""Drop documents in other languages, of low quality, with repetition, or with text of an evaluation.

Rules for English apply to English only: see stages.corpus.text.writing. The corpus may be larger than memory: it is
judged in parts. They stay on disk until the stage is done and take about as much room as the text. A killed stage
resumes at the next part.

Reads  out/dedup, data.evals, data.quality, data.validation.
Writes out/filter/documents.parquet  id, text, source: the kept documents in order of id, as often as weights says
       out/filter/dropped.parquet    id, source, reason (the first broken limit), value (of the measure); the schema's
                                     metadata has the version of the rules
       out/filter/rejected.jsonl     file, line, reason, excerpt: rejected held-out records and seeds
       reports/filter/               metrics.json, rules.md (the documents that each rule drops, with examples),
                                     reasons.csv, length.csv, with seeds quality.csv
"""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.contract import Account, Progress, Run, UserError, run_stage
from stages.contract.params import Params
from stages.corpus.filtering.applying import Judge
from stages.corpus.filtering.c4 import C4_LINES
from stages.corpus.filtering.contamination import index, passages
from stages.corpus.filtering.domains import write_sampled
from stages.corpus.filtering.examples import lines_page, page
from stages.corpus.filtering.language import check_languages
from stages.corpus.filtering.masking import mask
from stages.corpus.filtering.parts import Part, judge_parts, path, sizes
from stages.corpus.filtering.quality import Seeds, find_seeds, fit_classifier, held_out_auc
from stages.corpus.filtering.rules import check_limits, limits, page_limits, version
from stages.corpus.reading.documents import read_documents
from stages.corpus.reading.records import read_records
from stages.corpus.reading.rejections import Rejections, account_of, write_rejected
from stages.corpus.text.histograms import write_histogram, write_rows

DOCUMENTS = Path("out/dedup/documents.parquet")


def main(run: Run) -> None:
    """Judge the documents by the rules of `filter`, and mask personal data."""
    inputs = filter_inputs(run.params)
    write_rejected(run.out / "rejected.jsonl", inputs.rejected)
    for account in inputs.accounts:
        run.account(account, run.params.max_rejected)
    folder, size = run.scratch / "parts", [n / 1e6 for n in sizes(DOCUMENTS)]
    done = sum(n for k, n in enumerate(size) if path(folder, k).exists())
    progress = Progress("filter", total=sum(size), unit="MB", done=done)
    parts = judge_parts(DOCUMENTS, range(len(size)), inputs.judge, folder, lambda k: progress.step(size[k]))
    _report(run, parts, inputs)


class Inputs(NamedTuple):
    """The judge, the seeds of its classifier, and the records behind both."""

    judge: Judge
    seeds: Seeds | None
    evals: int  # held-out items from data.evals; validation texts follow them
    rejected: Rejections
    accounts: list[Account]


def filter_inputs(params: Params) -> Inputs:
    """Read the held-out items, and the seeds of the quality classifier if there are any; check the rules' params."""
    check_languages(params.filter.languages)
    check_limits(params.filter)
    validation = read_documents(params.data.validation)
    evals, of_evals = read_records(params.data.evals)
    items = [list(passages(record.value)) for record in evals]
    items += [[text] for text in validation.table["text"].to_pylist()]
    held_out = index(items, params.filter.decontamination_ngram)
    seeds = find_seeds(params.data.quality, params.filter.min_quality)
    judge = Judge(params.filter, held_out, fit_classifier(seeds) if seeds else None)
    of_seeds = seeds.rejected if seeds else Rejections()
    accounts = [
        account_of("data.evals", "evaluation records", len(evals), of_evals),
        account_of("data.validation", "validation documents", validation.table.num_rows, validation.rejected),
    ]
    if seeds:
        accounts.append(account_of("data.quality", "quality seeds", seeds.read - len(of_seeds), of_seeds))
    return Inputs(judge, seeds, len(evals), of_evals + validation.rejected + of_seeds, accounts)


def _report(run: Run, parts: list[Part], inputs: Inputs) -> None:
    """Write outs and reports from the judged parts."""
    params, rules = run.params.filter, version(run.params.filter)
    figures = _figures(parts)
    dropped = pa.concat_tables(part.dropped() for part in parts)
    before = figures["sizes"]
    reasons = _counts(dropped["reason"])
    if dropped.num_rows == len(before):
        most = sorted(reasons.items(), key=lambda item: -item[1])[:3]
        counts = ", ".join(f"{count} x {name}" for name, count in most)
        raise UserError(f"no document is left: {counts}. Loosen `filter` in params.yaml.")
    after, mixture = write_sampled(run.out / "documents.parquet", lambda: (p.kept() for p in parts), params.weights)
    kept = len(before) - dropped.num_rows
    run.account(Account("out/dedup", "documents", len(before), kept, dropped=reasons), run.params.max_rejected)
    _write_dropped(run, dropped, rules, len(before), figures)
    more: dict[str, Any] = {"mixture": mixture} if mixture else {}
    if params.mask:
        more["masked"] = dict(zip(params.mask, figures["masked"].tolist(), strict=True))
    if "lines" in figures:
        more["lines"] = dict(zip(("in", *C4_LINES), figures["lines"].tolist(), strict=True))
    if inputs.seeds:
        more["quality"] = _quality(run, inputs, figures["scores"])
    run.report(
        {
            "documents_in": len(before),
            "documents_out": len(after),
            "bytes_in": int(before.sum()),
            "bytes_out": int(after.sum()),
            "rules": rules,
            "dropped": {"total": dropped.num_rows, **reasons},
            "dropped_share": {name: round(count / len(before), 6) for name, count in reasons.items()},
            "dropped_share_of_source": _shares_of_source(dropped, parts),
            "held_out": _held_out(run, inputs, figures),
        }
        | more
    )
    write_rows(run.reports / "reasons.csv", ["reason", "documents"], [list(item) for item in reasons.items()])
    write_histogram(run.reports / "length.csv", "bytes", {"before": before, "after": after})


def _figures(parts: list[Part]) -> "dict[str, np.ndarray]":
    """Join the figures of all parts, one part in memory at a time.

    Overlaps are joined by maximum, counts by sum, others one after another.
    """
    joined: dict[str, Any] = {}
    for part in parts:
        for name, figure in part.figures().items():
            if name in ("before", "after"):
                joined[name] = np.maximum(joined.get(name, 0.0), figure)
            elif name in ("masked", "lines"):
                joined[name] = joined.get(name, 0) + figure
            else:
                joined.setdefault(name, []).append(figure)
    return {name: np.concatenate(figure) if isinstance(figure, list) else figure for name, figure in joined.items()}


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    """Count the values of a column, by value."""
    return dict(sorted((row["values"], row["counts"]) for row in pc.value_counts(column).to_pylist()))


def _shares_of_source(dropped: pa.Table, parts: list[Part]) -> dict[str, float]:
    """Return the share of each source's documents that are dropped."""
    counts = Counter(_counts(dropped["source"]))
    total = counts + sum((Counter(_counts(part.kept()["source"])) for part in parts), Counter())
    return {name: round(counts[name] / total[name], 6) for name in sorted(total)}


def _write_dropped(run: Run, dropped: pa.Table, rules: str, total: int, figures: "dict[str, np.ndarray]") -> None:
    params = run.params.filter
    table = dropped.select(["id", "source", "reason", "value"]).replace_schema_metadata({"rules": rules})
    pq.write_table(table, run.out / "dropped.parquet", compression="zstd")
    heading = f"Rules `{rules}`: {dropped.num_rows:,} of {total:,} documents removed."
    all_limits = limits(params) | page_limits(params)

    def show(excerpt: str) -> str:
        return mask(excerpt, params.mask)[0]

    text = page(heading, all_limits, dropped, total, show)
    if "lines" in figures:
        text += lines_page(figures["lines"], figures["line_examples"], show)
    (run.reports / "rules.md").write_text(text, encoding="utf-8")


def _held_out(run: Run, inputs: Inputs, figures: "dict[str, np.ndarray]") -> dict[str, dict[str, float]]:
    """Count evaluations and validation texts that leak into the documents, before and after the filter."""
    before, after = figures["before"], figures["after"]
    high = run.params.filter.max_contamination
    return {
        name: {
            "items": len(before[rows]),
            "too_short_to_find": int((inputs.judge.held_out.sizes[rows] == 0).sum()),
            "leaked_before": int((before[rows] > high).sum()),
            "leaked_after": int((after[rows] > high).sum()),
            "largest_overlap_after": round(float(after[rows].max(initial=0)), 6),
        }
        for name, rows in {"evals": slice(0, inputs.evals), "validation": slice(inputs.evals, None)}.items()
    }


def _quality(run: Run, inputs: Inputs, values: np.ndarray) -> dict[str, float]:
    """Write the histogram of all scores; return the classifier's metrics."""
    values = values[~np.isnan(values)]
    counts = np.histogram(values, np.linspace(0, 1, 11))[0]
    write_rows(run.reports / "quality.csv", ["score", "documents"], [[k / 10, int(n)] for k, n in enumerate(counts)])
    seeds, classifier = inputs.seeds, inputs.judge.classifier
    assert seeds is not None and classifier is not None
    auc = held_out_auc(seeds, classifier)
    return {
        "good_seeds": int(seeds.good.sum()),
        "bad_seeds": int((~seeds.good).sum()),
        "held_out_seeds": int(seeds.held_out.sum()),
        "mean_score": round(float(values.mean()), 6) if len(values) else 0.0,
    } | ({} if auc is None else {"auc": auc})


if __name__ == "__main__":
    run_stage("filter", main)
