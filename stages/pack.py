"""Tokenise the documents and pack them into rows of pack.row_tokens.

Every document stands between two <|endoftext|>: from the first its beginning is learned, with the second its end.
The corpus may be larger than memory; a stage that was killed goes on with the next documents.

Reads  out/filter, out/tokenizer, data.validation.
Writes out/pack/train/, out/pack/validation/  tokens.npy, cu_seqlens.npy, filled.npy: see stages.corpus.packing.Rows
       reports/pack/                          metrics.json, document_tokens.csv, documents_per_row.csv
"""

from collections.abc import Callable
from pathlib import Path

from stages.contract import Progress, Run, UserError, run_stage

DOCUMENTS, TOKENIZER = Path("out/filter/documents.parquet"), Path("out/tokenizer")


def main(run: Run) -> None:
    from stages.corpus.batches import count
    from stages.corpus.documents import read_documents
    from stages.corpus.histograms import write_histogram

    documents = {"train": DOCUMENTS, "validation": read_documents(run.params.data.validation).table}
    progress = Progress("pack", total=sum(map(count, documents.values())), unit="documents")
    metrics, lengths, segments = {}, {}, {}
    for name, part in documents.items():
        metrics[name], lengths[name], segments[name] = _pack(run, name, part, progress)
    run.report(metrics, ("train.tokens",))
    write_histogram(run.reports / "document_tokens.csv", "tokens", lengths)
    write_histogram(run.reports / "documents_per_row.csv", "documents", segments)


def _pack(run: Run, name: str, documents, progress: Progress):
    """Writes out/pack/<name>; its metrics, its documents' lengths, its rows' numbers of documents."""
    from stages.corpus.packing import arrange, save_packed
    from stages.corpus.vocabulary import PAD, load_vocabulary

    width, vocabulary = run.params.pack.row_tokens, load_vocabulary(TOKENIZER)
    dtype, lengths = tokenise(documents, run.scratch / name, progress)
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


def tokenise(documents, work: Path, progress: Progress):
    """Writes the tokens of all documents to ``work``; their dtype, and int64 (documents,): how many each has."""
    from stages.corpus.batches import batches
    from stages.corpus.tokens import append, begin, lengths

    dtype, framed_tokens = tokeniser(documents)
    done = begin(work, dtype)
    progress.skip(done)
    for batch in batches(documents, ["text"], done):
        append(work, *framed_tokens(batch["text"].to_pylist()))
        progress.step(len(batch))
    return dtype, lengths(work)


def tokeniser(documents) -> tuple[type, Callable]:
    """The dtype of tokens, and what makes them of some of the ``documents``' texts: see `framed`."""
    import numpy as np

    from stages.corpus.batches import head
    from stages.corpus.packing import framed
    from stages.corpus.vocabulary import CHECKED, END_OF_TEXT, encoder, load_vocabulary

    vocabulary = load_vocabulary(TOKENIZER)
    dtype = np.uint16 if len(vocabulary) <= 2**16 else np.uint32
    encode = encoder(TOKENIZER, head(documents, "text", CHECKED))

    def framed_tokens(texts: list[str]):
        encoded = encode(texts)
        return framed(encoded.tokens, encoded.lengths, vocabulary[END_OF_TEXT], dtype)

    return dtype, framed_tokens


def _by_source(documents, lengths) -> dict[str, int]:
    import numpy as np

    from stages.corpus.batches import codes

    names, owner = codes(documents, "source")
    tokens = np.bincount(owner, weights=lengths, minlength=len(names))
    return {name: int(total) for name, total in sorted(zip(names, tokens, strict=True)) if total}


if __name__ == "__main__":
    run_stage("pack", main)
