"""Bits per byte of n-gram models fitted on the training text, which a language model should beat."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from stages.evaluation.measuring import ngrams

END = 256  # the byte models' symbol for the end of a document


def byte_counts(documents: Path, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Trigram keys and counts over the bytes of a Parquet file with a column ``text``.

    When the file holds more than ``limit`` bytes of text, every k-th document is read, k the smallest that fits.
    """
    return ngrams.count_bytes(_texts(documents, _stride(_text_bytes(documents), limit)))


def token_counts(rows: np.ndarray, filled: np.ndarray, vocabulary: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Trigram keys and counts over packed training rows, shape (rows, T); every k-th row beyond ``limit`` tokens."""
    step = _stride(rows.size, limit)
    return ngrams.count_rows(rows[::step], filled[::step], vocabulary)


def byte_nats(keys: np.ndarray, counts: np.ndarray, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """- log p of each text in nats under the byte unigram and the byte trigram model, each shape (texts,)."""
    model = ngrams.fit_ngrams(keys, counts, ngrams.BYTES)
    unigram = ngrams.unigram_log2(keys, counts, ngrams.BYTES)
    symbols = [np.frombuffer(text.encode("utf-8"), dtype=np.uint8) for text in texts]
    single = np.array([unigram[s].sum() for s in symbols])
    triple = np.array([ngrams.log2_likelihood(model, s, END) for s in symbols])
    return -single * np.log(2), -triple * np.log(2)


def token_nats(
    keys: np.ndarray, counts: np.ndarray, vocabulary: int, documents: Sequence[Sequence[int]], end: int
) -> np.ndarray:
    """- log p of each tokenized document in nats under the token trigram model, shape (documents,).

    ``end`` is the id of <|endoftext|>, from which the first token is predicted, as with the language models.
    """
    model = ngrams.fit_ngrams(keys, counts, vocabulary)
    return -np.array([ngrams.log2_likelihood(model, np.array(d), end) for d in documents]) * np.log(2)


def _stride(size: int, limit: int) -> int:
    return max(1, -(-size // limit))


def _text_bytes(documents: Path) -> int:
    import polars as pl

    return pl.scan_parquet(documents).select(pl.col("text").str.len_bytes().sum()).collect().item() or 0


def _texts(documents: Path, stride: int) -> Iterator[bytes]:
    import pyarrow.parquet as pq

    seen = 0
    for batch in pq.ParquetFile(documents).iter_batches(batch_size=256, columns=["text"]):
        for text in batch.column("text"):
            if seen % stride == 0:
                yield text.as_py().encode("utf-8")
            seen += 1
