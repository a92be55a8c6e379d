"""Read the documents that an earlier stage wrote a few at a time: the corpus may be larger than memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.corpus.text.arrays import values

BATCH_BYTES = 2**24  # a single result would cost more in page faults than encoding
ROWS = 64


def batches(documents: Path | pa.Table, columns: list[str], skip: int = 0) -> Iterator[pa.Table]:
    """Yield ``columns`` of the documents from row ``skip`` on, in tables of about BATCH_BYTES."""
    held: list[pa.RecordBatch] = []
    size = 0
    for batch in _rows(documents, columns):
        rows, skip = batch.slice(skip), max(0, skip - len(batch))
        if len(rows):
            held, size = [*held, rows], size + rows.nbytes
        if size >= BATCH_BYTES:
            yield pa.Table.from_batches(held)
            held, size = [], 0
    if held:
        yield pa.Table.from_batches(held)


def head(documents: Path | pa.Table, column: str, most: int) -> list[Any]:
    """Return the first ``most`` values of a column."""
    return next(batches(documents, [column]))[column].slice(0, most).to_pylist()


def count(documents: Path | pa.Table) -> int:
    """Return the number of documents."""
    return documents.num_rows if isinstance(documents, pa.Table) else pq.read_metadata(documents).num_rows


def codes(documents: Path | pa.Table, column: str) -> tuple[list[str], np.ndarray]:
    """Return the distinct values of a column of strings, and int32 (documents,): the index of each document's."""
    if isinstance(documents, Path):
        with pq.ParquetFile(documents, read_dictionary=[column]) as file:  # read_table would import pyarrow.dataset
            table = file.read([column])
    else:
        table = documents.select([column])
    strings = table[column].combine_chunks()
    coded = strings if pa.types.is_dictionary(strings.type) else strings.dictionary_encode()
    return coded.dictionary.to_pylist(), values(coded.indices)


def _rows(documents: Path | pa.Table, columns: list[str]) -> Iterator[pa.RecordBatch]:
    if isinstance(documents, pa.Table):
        yield from documents.select(columns).to_batches(max_chunksize=ROWS)
        return
    with pq.ParquetFile(documents, buffer_size=2**20) as file:  # buffered: not a whole column at a time
        for group in range(file.num_row_groups):  # an iterator keeps what it read until its end
            yield from file.iter_batches(ROWS, [group], columns)
