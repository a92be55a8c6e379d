"""Make tables of documents (id, text, source) of records or of a reader's columns. Not for reading files.

A record is a document if its `text` is a string that is not blank.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.corpus.reading.rejections import KEPT, Record, Rejected, Rejections, excerpt
from stages.corpus.reading.streams import LINE_LIMIT, stem
from stages.corpus.text.arrays import flags, numbers, strings

SCHEMA = pa.schema([("id", pa.large_string()), ("text", pa.large_string()), ("source", pa.large_string())])
EMPTY = pa.table([strings([])] * len(SCHEMA), schema=SCHEMA)
SYNTHETIC = "synthetic/"  # prefix of the source of texts that a model wrote
COLON, NOTHING, MARK = strings([":", "", SYNTHETIC])
FALSE, TRUE = flags(np.array([False, True]))
ZERO, LONGEST = numbers(np.array([0, LINE_LIMIT], np.int64))
MISSING, EMPTY_TEXT = "missing text", "empty text"
FIRST = 20  # records of a file whose fields are looked at
Fields = Mapping[str, str]  # of a Source: this repository's name -> the data's
ParsedDocuments = tuple[pa.Table, Rejections]  # by SCHEMA, ids not yet unique; and the records that are none


class FieldNames(NamedTuple):
    """A file's own names for the fields of a document."""

    id: str = "id"
    text: str = "text"
    source: str = "source"
    synthetic: str = "synthetic"


OWN = FieldNames()
TEXTS = ("text", "content", "body", "document", "article", "raw_content", "page_content", "markdown", "code")


def names_in(fields: Collection[str], given: Fields) -> FieldNames:
    """Return the names that a file with ``fields`` has for the fields of a document.

    ``given`` (of a Source: {text: body}) comes first; then a text may have any name of TEXTS.
    """
    names = FieldNames(*(given[own] if given.get(own) in fields else own for own in OWN))
    if names.text in fields:
        return names
    return names._replace(text=next((name for name in TEXTS if name in fields), given.get("text", "text")))


class Piece(NamedTuple):
    """A part of a file, read and not yet parsed.

    ``memory`` counts its bytes; ``position`` the bytes of the file read so far; ``documents`` parses it, in any thread.
    """

    memory: int
    position: int
    documents: Callable[[], ParsedDocuments]


def record_pieces(
    read: Callable[[Path, str], Iterator[Record | Rejected]], path: Path, name: str, size: int, fields: Fields
) -> Iterator[Piece]:
    """Yield the documents among the records that ``read`` yields, in pieces of about ``size`` bytes."""
    held: list[Record | Rejected] = []
    memory, end, items = 0, path.stat().st_size, read(path, name)
    first = list(islice(items, FIRST))
    names = names_of(first, fields)
    for item in chain(first, items):
        held.append(item)
        memory += sum(len(v) for v in item.value.values() if isinstance(v, str)) if isinstance(item, Record) else 0
        if memory >= size:
            yield Piece(memory, 0, partial(from_records, held, names))
            held, memory = [], 0
    yield Piece(memory, end, partial(from_records, held, names))


def names_of(first: Iterable[Record | Rejected], fields: Fields) -> FieldNames:
    """Return `names_in` of the fields that are text in one of the ``first`` records."""
    values = [item.value for item in first if isinstance(item, Record)]
    return names_in({name for value in values for name in value if isinstance(value[name], str)}, fields)


def from_records(records: Iterable[Record | Rejected], names: FieldNames) -> ParsedDocuments:
    """Return the documents among ``records``, whose fields have ``names``, and the rejected ones."""
    rows, rejected = [], Rejections()
    for record in records:
        if isinstance(record, Rejected):
            rejected.append(record)
        elif reason := document_problem(record.value, names):
            shown = excerpt(record.value) if len(rejected.first) < KEPT else ""
            rejected.append(Rejected(record.file, record.line, reason, shown))
        else:
            rows.append((_identifier(record, names), record.value[names.text], _origin(record, names)))
    columns = [strings([row[k] for row in rows]) for k in range(len(SCHEMA))]
    return pa.table(columns, schema=SCHEMA), rejected


def document_problem(value: dict[str, Any], names: FieldNames) -> str | None:
    """Return why the record ``value`` is not a document, or None."""
    text = value.get(names.text)
    if text is None:
        return MISSING
    if not isinstance(text, str):
        return "text is not a string"
    if not text.strip():
        return EMPTY_TEXT
    try:
        if len(text.encode("utf-8")) > LINE_LIMIT:  # in Parquet: a line is never so long
            return "text too long"
    except UnicodeEncodeError:
        return "invalid UTF-8"
    return None if value.get(names.synthetic) in (None, False, True) else "synthetic is neither true nor false"


def _identifier(record: Record, names: FieldNames) -> str:
    name = record.value.get(names.id)
    usable = isinstance(name, str | int) and not isinstance(name, bool) and str(name)
    return _storable(str(name)) if usable else f"{record.file}:{record.line}"


def _origin(record: Record, names: FieldNames) -> str:
    name = record.value.get(names.source)
    name = _storable(name) if isinstance(name, str) and name else stem(record.file)
    return SYNTHETIC + name if record.value.get(names.synthetic) and not name.startswith(SYNTHETIC) else name


def _storable(name: str) -> str:
    return name.encode("utf-8", "replace").decode("utf-8")


def completed(columns: list[pa.Array], lines: np.ndarray, name: str) -> pa.Table:
    """Return a table by SCHEMA of the columns id, text, source and synthetic.

    A null or empty id becomes `file:line`, a null or empty source the file's stem.
    """
    ids, texts, sources = (column.cast(pa.large_string()) for column in columns[:3])
    missing = _missing(ids)
    if pc.any(missing).as_py():
        places = numbers(lines).cast(pa.large_string())
        places = pc.binary_join_element_wise(strings([name])[0], places, COLON)
        ids = pc.if_else(missing, places, ids)
    sources = pc.if_else(_missing(sources), strings([stem(name)])[0], sources)
    marked = pc.fill_null(columns[3].cast(pa.bool_()), FALSE)
    if pc.any(marked).as_py():
        marked = pc.and_(marked, pc.invert(pc.starts_with(sources, SYNTHETIC)))
        sources = pc.if_else(marked, pc.binary_join_element_wise(MARK, sources, NOTHING), sources)
    return pa.table([ids, texts, sources], schema=SCHEMA)


def _missing(values: pa.Array) -> pa.Array:
    """Return bool (values,): null or empty."""
    return pc.fill_null(pc.equal(pc.binary_length(values), ZERO), TRUE)


def blank_rows(texts: pa.Array) -> np.ndarray:
    """Return bool (documents,): null, or only characters for which `str.isspace` holds."""
    _, offsets, data = texts.buffers()
    offsets = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    blank = offsets[1:] == offsets[:-1]
    first = np.frombuffer(data, np.uint8)[offsets[:-1][~blank]] if data else np.zeros(0, np.uint8)
    maybe = np.flatnonzero(~blank)[(first <= ord(" ")) | (first > ord("~"))]
    heads = pc.utf8_slice_codeunits(texts.take(numbers(maybe)), 0, 1).to_pylist()
    for row, head in zip(maybe.tolist(), heads, strict=True):
        blank[row] = head.isspace() and not texts[row].as_py().strip()
    return blank


def count_blank(texts: pa.Array, rows: np.ndarray, rejected: Rejections) -> None:
    """Count ``rows`` of null or empty ``texts``."""
    missing = texts.take(numbers(rows)).null_count
    rejected.count(MISSING, missing)
    rejected.count(EMPTY_TEXT, len(rows) - missing)
