"""Drop documents in other languages, of low quality, repetitive, or giving away an evaluation.

Reads  out/dedup, data.evals, data.validation.
Writes out/filter/documents.parquet  id, text, source: what stays, in order of id
       out/filter/dropped.parquet    id, source, reason (the first broken limit), value (what was measured)
       out/filter/quarantine.jsonl   file, line, reason, excerpt: eval and validation records that could not be read
       reports/filter/               metrics.json, reasons.csv, length.csv
"""

from stages.contract import Progress, Run, UserError, run_stage


def main(run: Run) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from stages.corpus.contamination import index, overlap, passages
    from stages.corpus.documents import read_documents
    from stages.corpus.language import language_scores
    from stages.corpus.measures import measure
    from stages.corpus.records import read_records, write_rejected
    from stages.corpus.rules import decide, limits
    from stages.corpus.words import texts

    params = run.params.filter
    table = pq.read_table("out/dedup/documents.parquet")
    validation = read_documents(run.params.data.validation)
    evals, rejected = read_records(run.params.data.evals)
    items = [list(passages(record.value)) for record in evals]
    held_out = index(items + [[text] for text in validation.table["text"].to_pylist()], params.decontamination_ngram)

    documents = texts(table["text"])
    progress = Progress("filter", total=3 * table.num_rows, unit="checks")
    values = measure(documents, progress.step)
    found = overlap(documents, held_out, progress.step)
    values["contamination"] = found.documents
    values["language"] = language_scores(table["text"].to_pylist(), params.languages, progress.step)
    decision = decide(values, limits(params))
    if not decision.kept.any():
        raise UserError(f"no document is left: {_most_frequent(decision.reasons)}. Loosen `filter` in params.yaml.")

    kept, gone = table.filter(decision.kept), table.filter(~decision.kept)
    dropped = pa.table(
        {"id": gone["id"], "source": gone["source"], "reason": decision.reasons, "value": decision.values.round(6)}
    )
    pq.write_table(kept, run.out / "documents.parquet", compression="zstd")
    pq.write_table(dropped, run.out / "dropped.parquet", compression="zstd")
    write_rejected(run.out / "quarantine.jsonl", rejected + validation.rejected)
    after = overlap(texts(kept["text"]), held_out)
    _report(run, table, kept, dropped, rejected + validation.rejected, held_out, found.items, after.items, len(evals))


def _report(run: Run, table, kept, dropped, rejected, held_out, before, after, evals: int) -> None:
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
        },
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
