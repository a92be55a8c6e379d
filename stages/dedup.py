"""Remove exact and near-duplicates.

Reads  data.pretrain.
Writes out/dedup/documents.parquet   id, text, source: one document of each cluster, in order of id
       out/dedup/duplicates.parquet  id, source, kept_id, cluster, kind (exact, near), similarity: the removed ones
       out/dedup/quarantine.jsonl    file, line, reason, excerpt: what could not be read
       reports/dedup/                metrics.json, length.csv, duplicates.csv
"""

from stages.contract import Progress, Run, run_stage


def main(run: Run) -> None:
    import numpy as np
    import pyarrow.parquet as pq

    from stages.corpus.documents import read_documents
    from stages.corpus.duplicates import find_duplicates
    from stages.corpus.histograms import write_histogram
    from stages.corpus.records import count_reasons, write_rejected

    corpus = read_documents(run.params.data.pretrain)
    print(f"{corpus.table.num_rows:,} documents read, {len(corpus.rejected):,} records set aside", flush=True)
    progress = Progress("dedup", total=corpus.table.num_rows, unit="documents")
    found = find_duplicates(corpus.table, run.params.dedup, progress.step)
    kept = corpus.table.filter(found.kept)
    pq.write_table(kept, run.out / "documents.parquet", compression="zstd")
    pq.write_table(found.removed, run.out / "duplicates.parquet", compression="zstd")
    write_rejected(run.out / "quarantine.jsonl", corpus.rejected)

    before, after = _bytes(corpus.table), _bytes(kept)
    kinds = found.removed["kind"].to_pylist()
    run.report(
        {
            "documents_in": corpus.table.num_rows,
            "documents_out": kept.num_rows,
            "bytes_in": int(before.sum()),
            "bytes_out": int(after.sum()),
            "exact": kinds.count("exact"),
            "near": kinds.count("near"),
            "clusters": len(found.sizes),
            "largest_cluster": int(found.sizes.max(initial=0)),
            "renamed_ids": corpus.renamed,
            "quarantined": {"total": len(corpus.rejected), **count_reasons(corpus.rejected)},
            "removed_share": _removed_share(corpus.table, found.removed),
        },
        headline=("documents_in", "documents_out"),
    )
    write_histogram(run.reports / "length.csv", "bytes", {"before": before, "after": after})
    write_histogram(run.reports / "duplicates.csv", "cluster_size", {"clusters": np.sort(found.sizes)})


def _bytes(table):
    import pyarrow.compute as pc

    return pc.binary_length(table["text"]).to_numpy()


def _removed_share(table, removed) -> dict[str, float]:
    """Removed documents of each source, as a share of its documents."""
    from collections import Counter

    total = Counter(table["source"].to_pylist())
    gone = Counter(removed["source"].to_pylist())
    return {source: round(gone[source] / count, 6) for source, count in sorted(total.items())}


if __name__ == "__main__":
    run_stage("dedup", main)
