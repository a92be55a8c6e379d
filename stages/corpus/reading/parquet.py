"""Read Parquet files: each row is a record, or a document; in bounded memory, whatever their schema and content are."""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.corpus.reading.rejections import KEPT, SAME_NAME, Record, Rejected, Rejections, excerpt, printable
from stages.corpus.reading.streams import check_ratio
from stages.corpus.reading.tables import (
    EMPTY,
    FALSE,
    LONGEST,
    MISSING,
    FieldNames,
    Fields,
    ParsedDocuments,
    Piece,
    blank_rows,
    completed,
    count_blank,
    from_records,
    names_in,
)
from stages.corpus.text.arrays import flags, join, numbers, truths, values

UNREADABLE = "unreadable Parquet"
ROWS = 1024  # in a batch at most; a damaged row group keeps the whole batches before the damage
BYTES = 4 * 2**20  # in a table, about
ROW = 8  # least bytes that a row counts for
ZERO = numbers(np.zeros(1, np.int64))[0]
# Arrow's errors for damaged files and for values that Python has no type for: years before 1, unknown time zones.
UNUSABLE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError)


def read_parquet(path: Path, name: str) -> Iterator[Record | Rejected]:
    """Yield the rows of a Parquet file as records, and the rejected ones."""
    file = _opened(path, name, None)
    if isinstance(file, Rejected):
        yield file
        return
    for content, first in _tables(file, None, BYTES, path, name):
        if isinstance(content, Rejected):
            yield content
        else:
            yield from _records(content, range(first, first + len(content)), name)


def parquet_pieces(path: Path, name: str, size: int, fields: Fields) -> Iterator[Piece]:
    """Yield the documents of a Parquet file in pieces of about ``size`` bytes."""
    end, file = path.stat().st_size, _opened(path, name, fields)
    if isinstance(file, Rejected):
        yield _rejected(Rejections([file]), end)
        return
    columns, rows = file.schema_arrow.names, file.metadata.num_rows
    names = names_in(columns, fields)
    if names.text not in columns:
        file.close()
        yield _rejected(_without_text(name, rows, columns), end)
        return
    for content, first in _tables(file, [column for column in names if column in columns], size, path, name):
        position = end * first // rows
        if isinstance(content, Rejected):
            yield _rejected(Rejections([content]), position)
        else:
            yield Piece(content.nbytes, position, partial(_documents, content, name, names, first))


def _rejected(rejected: Rejections, position: int) -> Piece:
    return Piece(0, position, lambda: (EMPTY, rejected))


def _opened(path: Path, name: str, fields: Fields | None) -> pq.ParquetFile | Rejected:
    """Open the file ``name`` to read documents with ``fields`` (None: all columns), or return why it cannot be used.

    Strings stay dictionaries where they are stored so: a few bytes may stand for a million copies of a long text.
    """
    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
        names = schema.names
        if fields is not None:
            wanted = names_in(names, fields)
            names = [column for column in names if column in wanted]
        if doubled := [column for column, count in Counter(names).items() if count > 1]:
            shown = f"{', '.join(doubled)}: {rows:,} rows"
            return Rejected(name, 0, SAME_NAME, printable(shown.encode("utf-8", "replace")))
        strings = [field.name for field in schema if _has_bytes(field.type)]
        return pq.ParquetFile(path, buffer_size=2**20, read_dictionary=strings)
    except UNUSABLE as e:
        return Rejected(name, 0, UNREADABLE, type(e).__name__)


def _tables(
    file: pq.ParquetFile, columns: list[str] | None, size: int, path: Path, name: str
) -> Iterator[tuple[pa.Table | Rejected, int]]:
    """Yield ``file`` as tables of about ``size`` bytes and rejected rows, each with its first row (from 1); close it.

    Args:
        columns: to be read; None: all.
        path: of the file; ``name``: for rejected rows.

    Raises:
        UserError: as `check_ratio`.
    """
    first, expanded, on_disk = 1, 0, path.stat().st_size
    with file:
        for group in range(file.num_row_groups):
            after = first + file.metadata.row_group(group).num_rows
            held, weight, problem = [], 0, None
            batches = _batches(file, group, columns, size)
            while not problem:
                try:
                    part, weighs = next(batches, (None, 0))
                except UNUSABLE as e:
                    part, problem = None, e
                if part is not None:
                    held.append(part)
                    weight += weighs
                    expanded += weighs
                    check_ratio(path, expanded, on_disk)
                if held and (part is None or weight >= size):
                    table = pa.Table.from_batches(held)
                    yield table, first
                    first, held, weight = first + len(table), [], 0
                if part is None:
                    break
            if problem:
                yield Rejected(name, first, UNREADABLE, f"{type(problem).__name__}, {after - first:,} rows"), first
            first = after


def _batches(
    file: pq.ParquetFile, group: int, columns: list[str] | None, size: int
) -> Iterator[tuple[pa.RecordBatch, int]]:
    about = file.metadata.row_group(group)  # not its columns: where one is encrypted, Arrow ends the process
    rows = max(1, min(ROWS, size * about.num_rows // max(1, about.total_byte_size)))
    for batch in file.iter_batches(rows, [group], columns, use_threads=False):
        yield from _slices(batch, size)


def _slices(batch: pa.RecordBatch, size: int) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Yield ``batch`` without dictionaries, in slices of about ``size`` bytes, with the bytes of each."""
    coded = [k for k, column in enumerate(batch.columns) if pa.types.is_dictionary(column.type)]
    plain = sum(column.nbytes for k, column in enumerate(batch.columns) if k not in coded)
    weights = np.full(len(batch), ROW + plain // max(1, len(batch)), np.int64)
    for k in coded:
        weights += _lengths(batch.column(k))
    ends, start = np.cumsum(weights), 0
    while start < len(batch):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + size, side="right")))
        yield _decoded(batch.slice(start, stop - start), coded), int(ends[stop - 1]) - before
        start = stop


def _lengths(column: pa.DictionaryArray) -> np.ndarray:
    """Return int64 (rows,): bytes of each string.

    Raises:
        ValueError: an index is outside the dictionary, which Arrow would follow.
    """
    indices = values(pc.fill_null(column.indices.cast(pa.int64()), ZERO))
    if len(indices) > column.null_count and not 0 <= indices.min() <= indices.max() < len(column.dictionary):
        raise ValueError("damaged dictionary")
    if not _has_bytes(column.type.value_type):
        return np.full(len(column), ROW, np.int64)
    lengths = values(pc.fill_null(pc.binary_length(column.dictionary).cast(pa.int64()), ZERO))
    return np.append(lengths, 0)[indices]


def _decoded(batch: pa.RecordBatch, coded: list[int]) -> pa.RecordBatch:
    """Return ``batch`` with plain columns in place of the dictionaries ``coded``."""
    columns = [column.dictionary_decode() if k in coded else column for k, column in enumerate(batch.columns)]
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)


def _has_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)


def _records(table: pa.Table, rows: Iterable[int], name: str) -> Iterator[Record | Rejected]:
    """Yield the rows of a table as records of the file ``name``; ``rows``: their numbers there."""
    try:
        values = table.to_pylist()
    except UNUSABLE:
        yield from _row_by_row(table, rows, name)
        return
    for row, value in zip(rows, values, strict=True):
        yield Record(name, row, value)


def _row_by_row(table: pa.Table, rows: Iterable[int], name: str) -> Iterator[Record | Rejected]:
    for k, row in enumerate(rows):
        try:
            yield Record(name, row, table.slice(k, 1).to_pylist()[0])
        except UNUSABLE as e:  # also for invalid UTF-8, which Parquet's reader does not check
            yield Rejected(name, row, "invalid UTF-8" if isinstance(e, UnicodeDecodeError) else UNREADABLE,
                           type(e).__name__)  # fmt: skip


def _without_text(name: str, rows: int, columns: list[str]) -> Rejections:
    shown = excerpt({"columns": columns})
    rejected = Rejections(Rejected(name, row, MISSING, shown) for row in range(1, min(rows, KEPT) + 1))
    rejected.count(MISSING, rows - len(rejected))
    return rejected


def _documents(table: pa.Table, name: str, names: FieldNames, first: int) -> ParsedDocuments:
    lines, nothing = first + np.arange(len(table)), pa.nulls(len(table), pa.large_string())
    columns = [join(table[column]) if column in table.column_names else nothing for column in names[:3]]
    marks = join(table[names.synthetic]) if names.synthetic in table.column_names else pa.nulls(len(table), pa.bool_())
    plain = [_is_text(column) or (k == 0 and pa.types.is_integer(column.type)) for k, column in enumerate(columns)]
    if not all(plain) or not (pa.types.is_boolean(marks.type) or pa.types.is_null(marks.type)):
        return from_records(_records(table, lines.tolist(), name), names)
    texts = columns[1].cast(pa.large_string())
    bad = blank_rows(texts) | truths(pc.fill_null(pc.greater(pc.binary_length(texts), LONGEST), FALSE))
    if not bad.any():
        return completed([*columns, marks], lines, name), Rejections()
    documents = completed([column.filter(flags(~bad)) for column in (*columns, marks)], lines[~bad], name)
    rows = np.flatnonzero(bad)
    shown = rows[:KEPT]
    rejected = from_records(_records(table.take(numbers(shown)), lines[shown].tolist(), name), names)[1]
    count_blank(texts, rows[KEPT:], rejected)
    return documents, rejected


def _is_text(column: pa.Array) -> bool:
    """Return whether these are strings of valid UTF-8, which Parquet's reader does not check."""
    kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        return False
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
