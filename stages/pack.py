"""Tokenise the documents and pack them into rows of pack.row_tokens.

Every document stands between two <|endoftext|>: from the first its beginning is learned, with the second its end.
The corpus may be larger than memory; a stage that was killed goes on with the next documents.

Reads  out/filter, out/tokenizer, data.validation.
Writes out/pack/train/, out/pack/validation/  tokens.npy, cu_seqlens.npy, filled.npy: see stages.corpus.packing.Rows
       reports/pack/                          metrics.json, document_tokens.csv, documents_per_row.csv
"""

from pathlib import Path

from stages.contract import Progress, Run, UserError, run_stage


def main(run: Run) -> None:
    from stages.corpus.batches import count
    from stages.corpus.documents import read_documents
    from stages.corpus.histograms import write_histogram

    documents = {
        "train": Path("out/filter/documents.parquet"),
        "validation": read_documents(run.params.data.validation).table,
    }
    progress = Progress("pack", total=sum(map(count, documents.values())), unit="documents")
    metrics, lengths, segments = {}, {}, {}
    for name, part in documents.items():
        metrics[name], lengths[name], segments[name] = _pack(run, name, part, progress)
    run.report(metrics, ("train.tokens",))
    write_histogram(run.reports / "document_tokens.csv", "tokens", lengths)
    write_histogram(run.reports / "documents_per_row.csv", "documents", segments)


def _pack(run: Run, name: str, documents, progress: Progress):
    """Writes out/pack/<name>; its metrics, its documents' lengths, its rows' numbers of documents."""
    import numpy as np

    from stages.corpus.packing import arrange, save_packed
    from stages.corpus.vocabulary import PAD, load_vocabulary

    width, vocabulary = run.params.pack.row_tokens, load_vocabulary(Path("out/tokenizer"))
    dtype = np.uint16 if len(vocabulary) <= 2**16 else np.uint32
    lengths = _tokenise(documents, vocabulary, run.scratch / name, dtype, progress)
    total = int(lengths.sum())
    if name == "train" and total < width:
        raise UserError(
            f"the corpus has {total:,} tokens, less than one row of {width:,}. "
            "Lower pack.row_tokens in params.yaml, or add data."
        )
    found = arrange(lengths, width, run.params.seed)
    save_packed(run.out / name, run.scratch / name / "tokens.bin", dtype, found, width, vocabulary[PAD])
    metrics = {
        "documents": len(lengths),
        "documents_split": int((lengths > width).sum()),
        "tokens": total,
        "rows": len(found.filled),
        "row_tokens": width,
        "filled_share": round(total / max(1, len(found.filled) * width), 6),
        "tokens_by_source": _by_source(documents, lengths),
    }
    return metrics, lengths, found.segments


def _tokenise(documents, vocabulary: dict[str, int], work: Path, dtype: type, progress: Progress):
    """Writes the tokens of all documents to ``work``; int64 (documents,): how many each has."""
    from stages.corpus.batches import batches, head
    from stages.corpus.packing import framed
    from stages.corpus.tokens import append, begin, lengths
    from stages.corpus.vocabulary import CHECKED, END_OF_TEXT, encoder

    done = begin(work, dtype)
    progress.step(done)
    encode = encoder(Path("out/tokenizer"), head(documents, "text", CHECKED))
    for batch in batches(documents, ["text"], done):
        encoded = encode(batch["text"].to_pylist())
        append(work, *framed(encoded.tokens.astype(dtype), encoded.lengths, vocabulary[END_OF_TEXT]))
        progress.step(len(batch))
    return lengths(work)


def _by_source(documents, lengths) -> dict[str, int]:
    import numpy as np

    from stages.corpus.batches import codes

    names, owner = codes(documents, "source")
    tokens = np.bincount(owner, weights=lengths, minlength=len(names))
    return {name: int(total) for name, total in sorted(zip(names, tokens, strict=True)) if total}


if __name__ == "__main__":
    run_stage("pack", main)
