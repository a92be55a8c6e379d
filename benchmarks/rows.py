"""The tokenizer and the packed rows that benchmarks.trainer and benchmarks.posttraining read; a CPU is enough.

    python -m benchmarks.rows DOCUMENTS FOLDER

DOCUMENTS: a file or folder as data.pretrain takes them, 100 MB of text or more. Writes FOLDER/tokenizer, of a
vocabulary of 32,000 trained on them, and rows1024, rows2048 and rows4096, of as many documents as fill ROWS tokens.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from stages.contract.params import Source
from stages.corpus.reading.documents import read_documents
from stages.corpus.tokens.merges import train
from stages.corpus.tokens.packed_rows import save_rows
from stages.corpus.tokens.packing import framed, pack
from stages.corpus.tokens.vocabulary import END_OF_TEXT, PAD, encoder, load_vocabulary, save_tokenizer

VOCAB = 32000
ROWS = {1024: 5_000_000, 2048: 4_000_000, 4096: 3_000_000}  # row -> tokens
SEED = 0


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    table, folder = read_documents(Source(path=sys.argv[1], files="**/*")).table, Path(sys.argv[2])
    table = table.take(np.random.default_rng(SEED).permutation(len(table)))  # of every source some
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        pq.write_table(table, documents := Path(scratch) / "documents.parquet")
        save_tokenizer(train(documents, VOCAB), tokenizer)
    vocabulary = load_vocabulary(tokenizer)
    for row_tokens, wanted in ROWS.items():
        texts = _about(table["text"].to_pylist(), 4 * wanted)
        encoded = encoder(tokenizer, texts)(texts)
        end = vocabulary[END_OF_TEXT]
        tokens, lengths = framed(encoded.tokens, encoded.lengths, end, end, np.uint16)
        rows = pack(tokens, lengths, row_tokens, vocabulary[PAD], SEED)
        save_rows(rows, folder / f"rows{row_tokens}")
        documents = (rows.cu_seqlens < rows.filled[:, None]).sum(1).mean()
        print(f"rows{row_tokens}: {len(rows.tokens):,} rows, {documents:.2f} documents each", flush=True)


def _about(texts: list[str], size: int) -> list[str]:
    """The first of ``texts`` that together have ``size`` letters."""
    return texts[: int(np.searchsorted(np.cumsum([len(text) for text in texts]), size)) + 1]


if __name__ == "__main__":
    main()
