"""Drop documents in other languages, of low quality, repetitive, or giving away an evaluation.

The corpus may be larger than memory: it is judged in parts, which lie on disk until the stage is done and take about as
much room there as the text. A stage that was killed goes on at the next part.

Reads  out/dedup, data.evals, data.quality, data.validation.
Writes out/filter/documents.parquet  id, text, source: what stays, in order of id, each as often as weights says
       out/filter/dropped.parquet    id, source, reason (the first broken limit), value (what was measured); the
                                     schema's metadata has the rules' version
       out/filter/quarantine.jsonl   file, line, reason, excerpt: held-out records and seeds that could not be read
       reports/filter/               metrics.json, rules.md (what every rule removed, with examples), reasons.csv,
                                     length.csv, with seeds quality.csv
"""

from pathlib import Path
from typing import NamedTuple

from stages.contract import Progress, Run, UserError, run_stage
from stages.contract.params import Params

DOCUMENTS = Path("out/dedup/documents.parquet")


def main(run: Run) -> None:
    from stages.corpus.parts import judge_parts, path, sizes
    from stages.corpus.records import write_rejected

    against = prepare(run.params)
    write_rejected(run.out / "quarantine.jsonl", against.rejected)
    folder, size = run.scratch / "parts", [n / 1e6 for n in sizes(DOCUMENTS)]
    done = sum(n for k, n in enumerate(size) if path(folder, k).exists())
    progress = Progress("filter", total=sum(size), unit="MB", done=done)
    parts = judge_parts(DOCUMENTS, range(len(size)), against.judge, folder, lambda k: progress.step(size[k]))
    _report(run, parts, against)


class Against(NamedTuple):
    """What documents are judged by, what it was made of, and what of that could not be read."""

    judge: object  # stages.corpus.judging.Judge
    seeds: object | None  # stages.corpus.quality.Seeds
    evals: int  # held-out items; those behind them are validation texts
    rejected: list


def prepare(params: Params) -> Against:
    """Reads what is held out, and the seeds of the quality classifier if there are any."""
    from stages.corpus.contamination import index, passages
    from stages.corpus.documents import read_documents
    from stages.corpus.judging import Judge
    from stages.corpus.quality import fit
    from stages.corpus.records import read_records

    validation = read_documents(params.data.validation)
    evals, rejected = read_records(params.data.evals)
    items = [list(passages(record.value)) for record in evals]
    items += [[text] for text in validation.table["text"].to_pylist()]
    held_out = index(items, params.filter.decontamination_ngram)
    seeds = _seeds(params)
    judge = Judge(params.filter, held_out, fit(seeds) if seeds else None)
    return Against(judge, seeds, len(evals), rejected + validation.rejected + (seeds.rejected if seeds else []))


def _seeds(params: Params):
    """data.quality's, or None: there are none, and no limit needs any."""
    from stages.corpus.quality import read_seeds
    from stages.corpus.records import matching

    source = params.data.quality
    folder = Path(source.path)
    if folder.is_file() or (folder.is_dir() and source.files and any(map(Path.is_file, matching(folder, source)))):
        return read_seeds(source)
    if params.filter.min_quality:
        raise UserError(
            f"filter.min_quality is {params.filter.min_quality} and data.quality has no texts to learn from: no "
            f"file of {source.path} matches {source.files!r}. See data/quality/README.md."
        )
    return None


def _report(run: Run, parts, against: Against) -> None:
    """Writes outs and reports from what was found in each part."""
    import pyarrow as pa

    from stages.corpus.domains import write_sampled
    from stages.corpus.histograms import write_histogram, write_rows
    from stages.corpus.pages import C4_LINES
    from stages.corpus.records import count_reasons
    from stages.corpus.rules import version

    params, rules = run.params.filter, version(run.params.filter)
    figures = _figures(parts)
    gone = pa.concat_tables(part.gone() for part in parts)
    before = figures["sizes"]
    reasons = _counts(gone["reason"])
    if gone.num_rows == len(before):
        most = sorted(reasons.items(), key=lambda item: -item[1])[:3]
        found = ", ".join(f"{count} x {name}" for name, count in most)
        raise UserError(f"no document is left: {found}. Loosen `filter` in params.yaml.")
    after, mixture = write_sampled(run.out / "documents.parquet", lambda: (p.kept() for p in parts), params.weights)
    _write_gone(run, gone, rules, len(before), figures)
    more = {"mixture": mixture} if mixture else {}
    if params.mask:
        more["masked"] = dict(zip(params.mask, figures["masked"].tolist(), strict=True))
    if "lines" in figures:
        more["lines"] = dict(zip(("in", *C4_LINES), figures["lines"].tolist(), strict=True))
    if against.seeds:
        more["quality"] = _quality(run, against, figures["scores"])
    run.report(
        {
            "documents_in": len(before),
            "documents_out": len(after),
            "bytes_in": int(before.sum()),
            "bytes_out": int(after.sum()),
            "rules": rules,
            "dropped": {"total": gone.num_rows, **reasons},
            "dropped_share": {name: round(count / len(before), 6) for name, count in reasons.items()},
            "dropped_share_of_source": _shares_of_source(gone, parts),
            "quarantined": {"total": len(against.rejected), **count_reasons(against.rejected)},
            "held_out": _held_out(run, against, figures),
        }
        | more,
        headline=("documents_out",),
    )
    write_rows(run.reports / "reasons.csv", ["reason", "documents"], [list(item) for item in reasons.items()])
    write_histogram(run.reports / "length.csv", "bytes", {"before": before, "after": after})


def _figures(parts) -> dict:
    """The figures of all parts together, one part's in memory at a time: of documents all, of held-out items the
    highest, of lines and what was masked the sum."""
    import numpy as np

    together: dict[str, list | np.ndarray] = {}
    for part in parts:
        for name, found in part.figures().items():
            if name in ("before", "after"):
                together[name] = np.maximum(together.get(name, 0.0), found)
            elif name in ("masked", "lines"):
                together[name] = together.get(name, 0) + found
            else:
                together.setdefault(name, []).append(found)
    return {name: np.concatenate(found) if isinstance(found, list) else found for name, found in together.items()}


def _counts(column) -> dict[str, int]:
    """How often each value of a column occurs, by value."""
    import pyarrow.compute as pc

    return dict(sorted((found["values"], found["counts"]) for found in pc.value_counts(column).to_pylist()))


def _shares_of_source(gone, parts) -> dict[str, float]:
    """Dropped documents of each source, as a share of its documents."""
    from collections import Counter

    dropped = Counter(_counts(gone["source"]))
    total = dropped + sum((Counter(_counts(part.kept()["source"])) for part in parts), Counter())
    return {name: round(dropped[name] / total[name], 6) for name in sorted(total)}


def _write_gone(run: Run, gone, rules: str, total: int, figures) -> None:
    import pyarrow.parquet as pq

    from stages.corpus.examples import lines_page, page
    from stages.corpus.masking import mask
    from stages.corpus.rules import limits, page_limits

    params = run.params.filter
    dropped = gone.select(["id", "source", "reason", "value"]).replace_schema_metadata({"rules": rules})
    pq.write_table(dropped, run.out / "dropped.parquet", compression="zstd")
    heading = f"Rules `{rules}`: {gone.num_rows:,} of {total:,} documents removed."
    all_limits = limits(params) | page_limits(params)

    def show(excerpt: str) -> str:
        return mask(excerpt, params.mask)[0]

    text = page(heading, all_limits, gone, total, show)
    if "lines" in figures:
        text += lines_page(figures["lines"], figures["line_examples"], show)
    (run.reports / "rules.md").write_text(text, encoding="utf-8")


def _held_out(run: Run, against: Against, figures) -> dict[str, dict]:
    """How much of the evaluations and of the validation texts stood in the documents, and still does."""
    before, after = figures["before"], figures["after"]
    high = run.params.filter.max_contamination
    return {
        name: {
            "items": len(before[rows]),
            "too_short_to_find": int((against.judge.held_out.sizes[rows] == 0).sum()),
            "leaked_before": int((before[rows] > high).sum()),
            "leaked_after": int((after[rows] > high).sum()),
            "largest_overlap_after": round(float(after[rows].max(initial=0)), 6),
        }
        for name, rows in {"evals": slice(0, against.evals), "validation": slice(against.evals, None)}.items()
    }


def _quality(run: Run, against: Against, values) -> dict:
    """The classifier's metrics; writes the deciles of all scores."""
    import numpy as np

    from stages.corpus.histograms import write_rows
    from stages.corpus.quality import held_out_auc

    values = values[~np.isnan(values)]
    counts = np.histogram(values, np.linspace(0, 1, 11))[0]
    write_rows(run.reports / "quality.csv", ["score", "documents"], [[k / 10, int(n)] for k, n in enumerate(counts)])
    seeds, auc = against.seeds, held_out_auc(against.seeds, against.judge.classifier)
    return {
        "good_seeds": int(seeds.good.sum()),
        "bad_seeds": int((~seeds.good).sum()),
        "held_out_seeds": int(seeds.held_out.sum()),
        "mean_score": round(float(values.mean()), 6) if len(values) else 0.0,
    } | ({} if auc is None else {"auc": auc})


if __name__ == "__main__":
    run_stage("filter", main)
