"""Drop exact and near-duplicates, and cut paragraphs that several documents share.

The corpus may be larger than memory: it is processed in shards. They stay on disk until the stage is done and take
about 1.25 times as much room as the text. A killed stage resumes at the next shard.

Reads  data.pretrain; dedup.against, if it holds an index.parquet: a kept corpus; waits for out/check.
Writes out/dedup/documents.parquet   id, text, source: one document of each cluster, in order of id
       out/dedup/duplicates.parquet  id, source, kept_id, cluster, kind (exact, near, paragraphs: each of them occurs
                                     elsewhere), similarity: the dropped documents
       out/dedup/index.parquet       id, hash, signature, paragraphs: of all kept documents, for dedup.against
       out/dedup/rejected.jsonl      file, line, reason, excerpt: the first thousand rejected records
       reports/dedup/                metrics.json, length.csv, duplicates.csv
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from stages.contract import Progress, Run, UserError, run_stage
from stages.contract.params import Dedup
from stages.corpus.dedup.bands import load_band
from stages.corpus.dedup.collection import Collection, collect, room_in
from stages.corpus.dedup.duplicates import at_once, find_duplicates
from stages.corpus.dedup.kept import read_known, write_index
from stages.corpus.dedup.paragraphs import find_repeated
from stages.corpus.dedup.shards import all_rejected, make_shards, units
from stages.corpus.dedup.survivors import EXACT, KINDS, NEAR, PARAGRAPHS, write_dropped, write_survivors
from stages.corpus.reading.documents import no_documents
from stages.corpus.reading.rejections import account_of, write_rejected
from stages.corpus.text.arrays import values
from stages.corpus.text.histograms import write_histogram


def main(run: Run) -> None:
    """Drop duplicates of the pretraining documents."""
    params = run.params.dedup
    room = room_in(params.memory_gib)
    work = units(run.params.data.pretrain, room, run.scratch / "shards")
    total, done = (sum(unit.size for unit in some) / 1e6 for some in (work, [u for u in work if u.made.exists()]))
    progress = Progress("dedup, reading", total=total, unit="MB", done=done)
    shards = make_shards(work, params, room, lambda n: progress.step(n / 1e6))
    rejected = all_rejected(shards)
    write_rejected(run.out / "rejected.jsonl", rejected)
    corpus = collect(shards, read_known(params, run.scratch / "known"), room)
    count = len(corpus.ids) - corpus.known
    if not count:
        raise no_documents(run.params.data.pretrain, rejected)
    account = account_of("data.pretrain", "documents", count, rejected)
    account.check(run.params.max_rejected)

    survivor, kind, again = _decide(corpus, params, room, run.scratch / "bands")
    stays = survivor == np.arange(len(survivor))
    kept, dropped = np.flatnonzero(stays), np.flatnonzero(~stays)
    new = kept[corpus.known :]
    if not len(new):
        raise UserError(
            f"{run.params.data.pretrain.path}: nothing new: each document, or one like it, is in {params.against} "
            "already. Add data, or take that index out of the folder."
        )
    of_new = again[corpus.paragraphs[: corpus.known].sum() :]
    progress = Progress("dedup, writing", total=corpus.sizes[new].sum() / 1e6, unit="MB")
    written = write_survivors(
        run.out / "documents.parquet", corpus, new, of_new, params, room, lambda n: progress.step(n / 1e6)
    )
    write_index(run.out / "index.parquet", corpus, kept, again, params)
    write_dropped(run.out / "duplicates.parquet", corpus, dropped, survivor, kind)
    run.account(replace(account, used=len(written), dropped=_reasons(kind[dropped])), run.params.max_rejected)
    _report(run, corpus, written, dropped, survivor, kind, int(of_new.sum()))


def _decide(corpus: Collection, params: Dedup, room: int, bands: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decide the survivor of each document, and its kind if it is dropped, both int64 (documents,).

    For kinds see `write_dropped`. The third array says which of the survivors' paragraphs are cut out (bool).
    """
    first, exact = find_duplicates(corpus, params, at_once(room, params), lambda band: load_band(bands, band))
    first[: corpus.known] = np.arange(corpus.known)  # a kept corpus stays, even if a new document links two of it
    unique = np.flatnonzero(first == np.arange(len(first)))
    counts = corpus.paragraphs[unique]
    repeated = find_repeated(counts, corpus.others[unique], lambda: corpus.numbered_hashes(unique), room // 4)
    survivor = first.copy()
    survivor[unique[repeated.empty]] = unique[repeated.holders]
    survivor = survivor[survivor]
    kind = np.where(exact == survivor, EXACT, NEAR)
    kind[survivor != first] = PARAGRAPHS
    return survivor, kind, repeated.again[np.repeat(survivor[unique] == unique, counts)]


def _reasons(kind: np.ndarray) -> dict[str, int]:
    """Count the dropped documents by kind, in words."""
    names = ("near-duplicates", "exact duplicates", "repeated paragraphs only")
    counts = np.bincount(kind, minlength=len(KINDS)).tolist()
    return {name: count for name, count in zip(names, counts, strict=True) if count}


def _report(
    run: Run, corpus: Collection, written: np.ndarray, dropped: np.ndarray, survivor: np.ndarray,
    kind: np.ndarray, cut: int,
) -> None:  # fmt: skip
    before = corpus.sizes[corpus.known :]
    sizes = np.bincount(survivor[dropped], minlength=1)
    sizes = np.sort(sizes[sizes > 0]) + 1  # of clusters, with the survivor
    run.report(
        {
            "documents_in": len(before),
            "documents_out": len(written),
            "documents_known": corpus.known,
            "bytes_in": int(before.sum()),
            "bytes_out": int(written.sum()),
            **dict(zip(KINDS, np.bincount(kind[dropped], minlength=len(KINDS)).tolist(), strict=True)),
            "paragraphs_cut": cut,
            "clusters": len(sizes),
            "largest_cluster": int(sizes.max(initial=0)),
            "renamed_ids": corpus.renamed,
            "removed_share": _dropped_share(corpus, dropped),
        }
    )
    write_histogram(run.reports / "length.csv", "bytes", {"before": before, "after": written})
    write_histogram(run.reports / "duplicates.csv", "cluster_size", {"clusters": sizes})


def _dropped_share(corpus: Collection, dropped: np.ndarray) -> dict[str, float]:
    """Return the share of each source's documents that are dropped."""
    names, code = corpus.sources.dictionary.to_pylist(), values(corpus.sources.indices)
    total = np.bincount(code[corpus.known :], minlength=len(names))
    counts = np.bincount(code[dropped], minlength=len(names))
    return {names[k]: round(int(counts[k]) / int(total[k]), 6) for k in np.argsort(names) if total[k]}


if __name__ == "__main__":
    run_stage("dedup", main)
