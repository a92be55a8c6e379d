"""Remove exact and near-duplicates, and paragraphs that stand in several documents.

The corpus may be larger than memory: it is worked on in shards, which lie on disk until the stage is done and take
about as much room there as the text and a quarter. A stage that was killed goes on at the next shard.

Reads  data.pretrain; dedup.against, if it holds an index.parquet: a corpus that was kept before.
Writes out/dedup/documents.parquet   id, text, source: one document of each cluster, in order of id
       out/dedup/duplicates.parquet  id, source, kept_id, cluster, kind (exact, near, paragraphs: each of its own
                                     stands elsewhere), similarity: the removed ones
       out/dedup/index.parquet       id, hash, signature, paragraphs: of all that was kept, for dedup.against
       out/dedup/quarantine.jsonl    file, line, reason, excerpt: what could not be read
       reports/dedup/                metrics.json, length.csv, duplicates.csv
"""

from pathlib import Path

from stages.contract import Progress, Run, UserError, run_stage


def main(run: Run) -> None:
    from itertools import chain

    import numpy as np

    from stages.corpus.collection import collect, room_in
    from stages.corpus.kept import read_known, write_index
    from stages.corpus.records import source_files, summary
    from stages.corpus.shards import make_shards, units, write_rejected
    from stages.corpus.survivors import write_documents, write_removed

    params = run.params.dedup
    room = room_in(params.memory_gib)
    work = units(source_files(run.params.data.pretrain), room, run.scratch / "shards")
    total, done = (sum(unit.size for unit in some) / 1e6 for some in (work, [u for u in work if u.made.exists()]))
    progress = Progress("dedup, reading", total=total, unit="MB", done=done)
    shards = make_shards(work, params, room, lambda n: progress.step(n / 1e6))
    reasons = write_rejected(run.out / "quarantine.jsonl", shards)
    corpus = collect(shards, read_known(params, run.scratch / "known"), room)
    if len(corpus.ids) == corpus.known:
        rejected = list(chain.from_iterable(shard.rejected() for shard in shards))
        raise UserError(f'{run.params.data.pretrain.path}: no document with a "text"; {summary(rejected)}.')
    count = len(corpus.ids) - corpus.known
    print(f"{count:,} documents read, {sum(reasons.values()):,} records set aside", flush=True)

    survivor, kind, again = _decide(corpus, params, room, run.scratch / "bands")
    stays = survivor == np.arange(len(survivor))
    kept, removed = np.flatnonzero(stays), np.flatnonzero(~stays)
    new = kept[corpus.known :]
    if not len(new):
        raise UserError(
            f"{run.params.data.pretrain.path}: nothing new: each document, or one like it, is in {params.against} "
            "already. Add data, or take that index out of the folder."
        )
    of_new = again[corpus.paragraphs[: corpus.known].sum() :]
    progress = Progress("dedup, writing", total=corpus.sizes[new].sum() / 1e6, unit="MB")
    written = write_documents(
        run.out / "documents.parquet", corpus, new, of_new, params, room, lambda n: progress.step(n / 1e6)
    )
    write_index(run.out / "index.parquet", corpus, kept, again, params)
    write_removed(run.out / "duplicates.parquet", corpus, removed, survivor, kind)
    _report(run, corpus, written, removed, survivor, kind, int(of_new.sum()), reasons)


def _decide(corpus, params, room: int, bands: Path) -> tuple:
    """int64 (documents,): each one's survivor; int64: of which kind it is, if it is another (see `write_removed`);
    bool: which of the survivors' paragraphs are left out."""
    import numpy as np

    from stages.corpus.bands import load_band
    from stages.corpus.duplicates import at_once, find_duplicates
    from stages.corpus.paragraphs import find_repeated
    from stages.corpus.survivors import EXACT, NEAR, PARAGRAPHS

    like, twin = find_duplicates(
        corpus.hashes, corpus.wordless, corpus.keys, corpus.signatures, params, at_once(room, params),
        lambda band: load_band(bands, band),
    )  # fmt: skip
    like[: corpus.known] = np.arange(corpus.known)  # what was kept stays, also where a new document links it to another
    left = np.flatnonzero(like == np.arange(len(like)))
    counts = corpus.paragraphs[left]
    repeated = find_repeated(counts, corpus.beside[left], lambda: corpus.numbered_hashes(left), room // 4)
    survivor = like.copy()
    survivor[left[repeated.empty]] = left[repeated.holders]
    survivor = survivor[survivor]
    kind = np.where(twin == survivor, EXACT, NEAR)
    kind[survivor != like] = PARAGRAPHS
    return survivor, kind, repeated.again[np.repeat(survivor[left] == left, counts)]


def _report(run: Run, corpus, written, removed, survivor, kind, cut: int, reasons: dict[str, int]) -> None:
    import numpy as np

    from stages.corpus.histograms import write_histogram
    from stages.corpus.survivors import KINDS

    before = corpus.sizes[corpus.known :]
    sizes = np.bincount(survivor[removed], minlength=1)
    sizes = np.sort(sizes[sizes > 0]) + 1  # the survivor
    run.report(
        {
            "documents_in": len(before),
            "documents_out": len(written),
            "documents_known": corpus.known,
            "bytes_in": int(before.sum()),
            "bytes_out": int(written.sum()),
            **dict(zip(KINDS, np.bincount(kind[removed], minlength=len(KINDS)).tolist(), strict=True)),
            "paragraphs_cut": cut,
            "clusters": len(sizes),
            "largest_cluster": int(sizes.max(initial=0)),
            "renamed_ids": corpus.renamed,
            "quarantined": {"total": sum(reasons.values()), **reasons},
            "removed_share": _removed_share(corpus, removed),
        },
        headline=("documents_in", "documents_out"),
    )
    write_histogram(run.reports / "length.csv", "bytes", {"before": before, "after": written})
    write_histogram(run.reports / "duplicates.csv", "cluster_size", {"clusters": sizes})


def _removed_share(corpus, removed) -> dict[str, float]:
    """Removed documents of each source, as a share of its documents."""
    import numpy as np

    from stages.corpus.arrays import values

    names, code = corpus.sources.dictionary.to_pylist(), values(corpus.sources.indices)
    total = np.bincount(code[corpus.known :], minlength=len(names))
    gone = np.bincount(code[removed], minlength=len(names))
    return {names[k]: round(int(gone[k]) / int(total[k]), 6) for k in np.argsort(names) if total[k]}


if __name__ == "__main__":
    run_stage("dedup", main)
