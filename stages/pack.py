"""Tokenize the documents and pack them into rows of pack.row_tokens.

Each document is between two <|endoftext|>, or the marks of the model in `init`: the model learns its beginning from the
first, and its end from the second.
The corpus may be larger than memory; a killed stage resumes with the next documents.

Reads  out/filter, out/tokenizer, data.validation.
Writes out/pack/train/, out/pack/validation/  tokens.npy, cu_seqlens.npy, filled.npy: see corpus.tokens.packed_rows.Rows
       reports/pack/                          metrics.json, document_tokens.csv, documents_per_row.csv
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.contract import Progress, Run, UserError, run_stage
from stages.corpus.reading.batches import batches, codes, count, head
from stages.corpus.reading.documents import read_documents
from stages.corpus.reading.rejections import account_of
from stages.corpus.text.histograms import write_histogram
from stages.corpus.tokens.adoption import document_marks
from stages.corpus.tokens.packing import arrange, framed, save_packed
from stages.corpus.tokens.token_store import append, begin_store, document_lengths
from stages.corpus.tokens.vocabulary import CHECKED, encoder, load_vocabulary

DOCUMENTS, TOKENIZER = Path("out/filter/documents.parquet"), Path("out/tokenizer")


def main(run: Run) -> None:
    """Encode the documents, and pack them into rows of fixed length."""
    validation = read_documents(run.params.data.validation)
    account = account_of("data.validation", "validation documents", validation.table.num_rows, validation.rejected)
    run.account(account, run.params.max_rejected)
    documents = {"train": DOCUMENTS, "validation": validation.table}
    progress = Progress("pack", total=sum(map(count, documents.values())), unit="documents")
    metrics, lengths, segments = {}, {}, {}
    for name, part in documents.items():
        metrics[name], lengths[name], segments[name] = _pack(run, name, part, progress)
    run.report(metrics)
    write_histogram(run.reports / "document_tokens.csv", "tokens", lengths)
    write_histogram(run.reports / "documents_per_row.csv", "documents", segments)


def _pack(
    run: Run, name: str, documents: Path | pa.Table, progress: Progress
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Write out/pack/<name>; return its metrics, the lengths of its documents, and the documents of each row."""
    width, pad = run.params.pack.row_tokens, document_marks(TOKENIZER).pad
    dtype, lengths = tokenize(documents, run.scratch / name, progress)
    total = int(lengths.sum())
    if name == "train" and total < width:
        raise UserError(
            f"the corpus has {total:,} tokens, less than one row of {width:,}. "
            "Lower pack.row_tokens in params.yaml, or add data."
        )
    plan = arrange(lengths, width, run.params.seed)
    save_packed(run.out / name, run.scratch / name / "tokens.bin", dtype, plan, width, pad)
    metrics = {
        "documents": len(lengths),
        "documents_split": int((lengths > width).sum()),
        "tokens": total,
        "rows": len(plan.filled),
        "row_tokens": width,
        "filled_share": round(total / max(1, len(plan.filled) * width), 6),
        "tokens_by_source": _by_source(documents, lengths),
    }
    return metrics, lengths, plan.segments


def tokenize(documents: Path | pa.Table, work: Path, progress: Progress) -> tuple[type[np.unsignedinteger], np.ndarray]:
    """Store the tokens of all documents in ``work``; return their dtype and the tokens of each document (int64)."""
    dtype, framed_tokens = document_encoder(documents)
    done = begin_store(work, dtype)
    progress.skip(done)
    for batch in batches(documents, ["text"], done):
        append(work, *framed_tokens(batch["text"].to_pylist()))
        progress.step(len(batch))
    return dtype, document_lengths(work)


def document_encoder(
    documents: Path | pa.Table,
) -> tuple[type[np.unsignedinteger], Callable[[list[str]], tuple[np.ndarray, np.ndarray]]]:
    """Return the dtype of tokens, and a function that encodes texts of ``documents``: see `framed`."""
    marks = document_marks(TOKENIZER)
    dtype = np.uint16 if max(load_vocabulary(TOKENIZER).values()) < 2**16 else np.uint32
    encode = encoder(TOKENIZER, head(documents, "text", CHECKED))

    def framed_tokens(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded = encode(texts)
        return framed(encoded.tokens, encoded.lengths, marks.begin, marks.end, dtype)

    return dtype, framed_tokens


def _by_source(documents: Path | pa.Table, lengths: np.ndarray) -> dict[str, int]:
    names, owner = codes(documents, "source")
    tokens = np.bincount(owner, weights=lengths, minlength=len(names))
    return {name: int(total) for name, total in sorted(zip(names, tokens, strict=True)) if total}


if __name__ == "__main__":
    run_stage("pack", main)
