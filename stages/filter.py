"""Drop documents in other languages, of low quality, repetitive, or giving away an evaluation.

Reads  out/dedup, data.evals, data.quality, data.validation.
Writes out/filter/documents.parquet  id, text, source: what stays, in order of id, each as often as weights says
       out/filter/dropped.parquet    id, source, reason (the first broken limit), value (what was measured); the
                                     schema's metadata has the rules' version
       out/filter/quarantine.jsonl   file, line, reason, excerpt: held-out records and seeds that could not be read
       reports/filter/               metrics.json, rules.md (what every rule removed, with examples), reasons.csv,
                                     length.csv, with seeds quality.csv
"""

from pathlib import Path

from stages.contract import Progress, Run, UserError, run_stage


def main(run: Run) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from stages.corpus.contamination import index, overlap, passages
    from stages.corpus.documents import read_documents
    from stages.corpus.language import language_scores
    from stages.corpus.measures import measure
    from stages.corpus.quality import fit
    from stages.corpus.records import read_records, write_rejected
    from stages.corpus.rules import decide, limits, page_limits, page_measures, version
    from stages.corpus.sampling import sampled
    from stages.corpus.words import strings, texts

    params = run.params.filter
    table = pq.read_table("out/dedup/documents.parquet")
    validation = read_documents(run.params.data.validation)
    evals, rejected = read_records(run.params.data.evals)
    items = [list(passages(record.value)) for record in evals]
    held_out = index(items + [[text] for text in validation.table["text"].to_pylist()], params.decontamination_ngram)
    seeds = _seeds(run)
    classifier = fit(seeds) if seeds else None
    rejected = rejected + validation.rejected + (seeds.rejected if seeds else [])

    documents = texts(table["text"])
    progress = Progress("filter", total=3 * table.num_rows, unit="checks")
    values = measure(documents, params.definitions == "published", progress.step)
    found = overlap(documents, held_out, progress.step)
    values["contamination"] = found.documents
    values["language"] = np.ones(table.num_rows)
    if params.min_language_score:
        values["language"] = language_scores(table["text"].to_pylist(), params.languages, progress.step)
    first, last = limits(params), page_limits(params)
    left = decide(values, first).kept
    kept = table.filter(left)
    pages, measured = page_measures(texts(kept["text"]), params, classifier)
    for name, of_left in measured.items():
        values[name] = np.full(table.num_rows, np.nan)  # which breaks no limit
        values[name][left] = of_left
    decision = decide(values, first | last)
    if not decision.kept.any():
        raise UserError(f"no document is left: {_most_frequent(decision.reasons)}. Loosen `filter` in params.yaml.")

    if params.c4.apply:
        kept = kept.set_column(1, "text", strings(pages))
    kept, gone = kept.filter(decision.kept[left]), table.filter(~decision.kept)
    kept, masked = _masked(kept, params.mask)
    gone = gone.append_column("reason", pa.array(decision.reasons, pa.string()))
    gone = gone.append_column("value", pa.array(decision.values.round(6)))
    rules = version(params)
    taken, mixture = sampled(kept, params.weights)
    pq.write_table(taken, run.out / "documents.parquet", compression="zstd")
    dropped = gone.select(["id", "source", "reason", "value"]).replace_schema_metadata({"rules": rules})
    pq.write_table(dropped, run.out / "dropped.parquet", compression="zstd")
    write_rejected(run.out / "quarantine.jsonl", rejected)
    after = overlap(texts(kept["text"]), held_out)
    more = {"rules": rules} | ({"masked": masked} if params.mask else {}) | ({"mixture": mixture} if mixture else {})
    if seeds:
        more["quality"] = _quality(run, seeds, classifier, values["quality"])
    _report(run, table, kept, dropped, rejected, held_out, found.items, after.items, len(evals), more)
    _examples(run, rules, first | last, gone, table.num_rows)


def _seeds(run: Run):
    """data.quality's, or None: there are none, and no limit needs any."""
    from stages.corpus.quality import read_seeds

    source = run.params.data.quality
    folder = Path(source.path)
    if folder.is_file() or (folder.is_dir() and any(path.is_file() for path in folder.glob(source.files))):
        return read_seeds(source)
    if run.params.filter.min_quality:
        raise UserError(
            f"filter.min_quality is {run.params.filter.min_quality} and data.quality has no texts to learn from: no "
            f"file of {source.path} matches {source.files!r}. See data/quality/README.md."
        )
    return None


def _masked(kept, kinds: list[str]):
    """``kept`` with ``kinds`` masked in its texts, and how many of each were."""
    from collections import Counter

    import pyarrow as pa

    from stages.corpus.masking import mask

    if not kinds:
        return kept, {}
    found, texts = Counter(dict.fromkeys(kinds, 0)), []
    for text in kept["text"].to_pylist():
        text, counts = mask(text, kinds)
        texts.append(text)
        found.update(counts)
    return kept.set_column(1, "text", pa.array(texts, pa.large_string())), dict(found)


def _quality(run: Run, seeds, classifier, values) -> dict:
    """The classifier's metrics; writes the deciles of all scores."""
    import numpy as np

    from stages.corpus.histograms import write_rows
    from stages.corpus.quality import held_out_auc

    values = values[~np.isnan(values)]
    counts = np.histogram(values, np.linspace(0, 1, 11))[0]
    write_rows(run.reports / "quality.csv", ["score", "documents"], [[k / 10, int(n)] for k, n in enumerate(counts)])
    auc = held_out_auc(seeds, classifier)
    return {
        "good_seeds": int(seeds.good.sum()),
        "bad_seeds": int((~seeds.good).sum()),
        "held_out_seeds": int(seeds.held_out.sum()),
        "mean_score": round(float(values.mean()), 6) if len(values) else 0.0,
    } | ({} if auc is None else {"auc": auc})


def _examples(run: Run, rules: str, limits: dict, gone, total: int) -> None:
    from stages.corpus.examples import page
    from stages.corpus.masking import mask

    heading = f"Rules `{rules}`: {gone.num_rows:,} of {total:,} documents removed."
    text = page(heading, limits, gone, total, lambda excerpt: mask(excerpt, run.params.filter.mask)[0])
    (run.reports / "rules.md").write_text(text, encoding="utf-8")


def _report(run: Run, table, kept, dropped, rejected, held_out, before, after, evals: int, more) -> None:
    from collections import Counter

    import pyarrow.compute as pc

    from stages.corpus.histograms import write_histogram, write_rows
    from stages.corpus.records import count_reasons

    reasons = Counter(dropped["reason"].to_pylist())
    total, gone = Counter(table["source"].to_pylist()), Counter(dropped["source"].to_pylist())
    high = run.params.filter.max_contamination
    part = {"evals": slice(0, evals), "validation": slice(evals, None)}
    run.report(
        {
            "documents_in": table.num_rows,
            "documents_out": kept.num_rows,
            "bytes_in": pc.sum(pc.binary_length(table["text"])).as_py(),
            "bytes_out": pc.sum(pc.binary_length(kept["text"])).as_py(),
            "dropped": {"total": dropped.num_rows, **dict(sorted(reasons.items()))},
            "dropped_share": {name: round(count / table.num_rows, 6) for name, count in sorted(reasons.items())},
            "dropped_share_of_source": {name: round(gone[name] / total[name], 6) for name in sorted(total)},
            "quarantined": {"total": len(rejected), **count_reasons(rejected)},
            "held_out": {
                name: {
                    "items": len(before[rows]),
                    "too_short_to_find": int((held_out.sizes[rows] == 0).sum()),
                    "leaked_before": int((before[rows] > high).sum()),
                    "leaked_after": int((after[rows] > high).sum()),
                    "largest_overlap_after": round(float(after[rows].max(initial=0)), 6),
                }
                for name, rows in part.items()
            },
        }
        | more,
        headline=("documents_out",),
    )
    write_rows(run.reports / "reasons.csv", ["reason", "documents"], [list(r) for r in sorted(reasons.items())])
    lengths = {"before": pc.binary_length(table["text"]), "after": pc.binary_length(kept["text"])}
    write_histogram(run.reports / "length.csv", "bytes", {name: n.to_numpy() for name, n in lengths.items()})


def _most_frequent(reasons: list[str]) -> str:
    from collections import Counter

    return ", ".join(f"{count} x {name}" for name, count in Counter(reasons).most_common(3))


if __name__ == "__main__":
    run_stage("filter", main)
