"""Tokenise the documents and pack them into rows of pack.row_tokens.

Every document stands between two <|endoftext|>: from the first its beginning is learned, with the second its end.

Reads  out/filter, out/tokenizer, data.validation.
Writes out/pack/train/, out/pack/validation/  tokens.npy, cu_seqlens.npy, filled.npy: see stages.corpus.packing.Rows
       reports/pack/                          metrics.json, document_tokens.csv, documents_per_row.csv
"""

from pathlib import Path

from stages.contract import Progress, Run, UserError, run_stage


def main(run: Run) -> None:
    import pyarrow.parquet as pq

    from stages.corpus.documents import read_documents
    from stages.corpus.histograms import write_histogram

    tables = {
        "train": pq.read_table("out/filter/documents.parquet"),
        "validation": read_documents(run.params.data.validation).table,
    }
    progress = Progress("pack", total=sum(table.num_rows for table in tables.values()), unit="documents")
    metrics, lengths, segments = {}, {}, {}
    for name, table in tables.items():
        metrics[name], lengths[name], segments[name] = _pack(run, name, table, progress)
    run.report(metrics, ("train.tokens",))
    write_histogram(run.reports / "document_tokens.csv", "tokens", lengths)
    write_histogram(run.reports / "documents_per_row.csv", "documents", segments)


def _pack(run: Run, name: str, table, progress: Progress):
    """Writes out/pack/<name>; its metrics, its documents' lengths, its rows' numbers of documents."""
    import numpy as np

    from stages.corpus.packing import framed, pack, save_rows
    from stages.corpus.vocabulary import END_OF_TEXT, PAD, encode, load_vocabulary

    folder, width = Path("out/tokenizer"), run.params.pack.row_tokens
    vocabulary = load_vocabulary(folder)
    encoded = encode(folder, table["text"].to_pylist(), progress.step)
    dtype = np.uint16 if len(vocabulary) <= 2**16 else np.uint32
    tokens, lengths = framed(encoded.tokens.astype(dtype), encoded.lengths, vocabulary[END_OF_TEXT])
    if name == "train" and len(tokens) < width:
        raise UserError(
            f"the corpus has {len(tokens):,} tokens, less than one row of {width:,}. "
            "Lower pack.row_tokens in params.yaml, or add data."
        )
    rows = pack(tokens, lengths, width, vocabulary[PAD], run.params.seed)
    save_rows(rows, run.out / name)
    names, owner = np.unique(table["source"].to_numpy(), return_inverse=True)
    by_source = np.bincount(owner, weights=lengths)
    metrics = {
        "documents": len(lengths),
        "documents_split": int((lengths > width).sum()),
        "tokens": len(tokens),
        "rows": len(rows.tokens),
        "row_tokens": width,
        "filled_share": round(len(tokens) / max(1, rows.tokens.size), 6),
        "tokens_by_source": {str(source): int(count) for source, count in zip(names, by_source, strict=True)},
    }
    return metrics, lengths, (rows.cu_seqlens < rows.filled[:, None]).sum(axis=1)


if __name__ == "__main__":
    run_stage("pack", main)
