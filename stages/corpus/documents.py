"""Documents of a corpus as tables: id, text and source, from JSONL, Parquet and text files of any size.

A file is read in pieces. JSON lines are parsed a piece at a time by Arrow, without the GIL, as long as all of them
are what Arrow and `stages.corpus.records` understand alike; a piece that is not is cut into smaller ones, down to
those few lines that are then looked at one by one.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

from stages.contract.errors import UserError
from stages.contract.params import Source
from stages.corpus.arrays import flags, integers, join, numbers, strings, truths, utf8
from stages.corpus.records import (
    JSONL,
    MALFORMED,
    PARQUET,
    UNREADABLE,
    Record,
    Rejected,
    excerpt,
    kind_of,
    read_lines,
    read_text_file,
    source_files,
    stem,
    summary,
    table_rows,
    unreadable_rows,
)
from stages.corpus.streams import LINE_LIMIT, Block, Line, blocks, split

SCHEMA = pa.schema([("id", pa.large_string()), ("text", pa.large_string()), ("source", pa.large_string())])
EMPTY = pa.table([strings([])] * len(SCHEMA), schema=SCHEMA)
GIVEN = [*SCHEMA.names, "synthetic"]  # what is read of a document
SYNTHETIC = "synthetic/"  # before the source of a text that a model wrote
BOM = b"\xef\xbb\xbf"
COLON, NOTHING, MARK = strings([":", "", SYNTHETIC])
FALSE, TRUE = flags(np.array([False, True]))
ZERO = numbers(np.zeros(1, np.int64))[0]
PIECE = 4 * 2**20  # bytes
FEW = 2**16  # bytes of lines that are read one by one if Arrow does not understand them
BATCH = 1024  # rows of Parquet at most; where a row group is damaged, what whole batches came before is kept


class Corpus(NamedTuple):
    """``table`` has SCHEMA's columns, unique ids, rows in order of id."""

    table: pa.Table
    rejected: list[Rejected]
    renamed: int  # documents whose id was taken


class Piece(NamedTuple):
    """Some of the file ``file``. ``size``: bytes of it in memory; ``position``: bytes of the file read by then."""

    file: str
    content: Block | pa.Table | Record | Rejected
    first: int  # line or row
    size: int
    position: int


def read_documents(source: Source) -> Corpus:
    """Every usable document of ``source``: id, text and source as strings.

    A missing id becomes ``file:line``, a missing source the file's stem; see `unique_ids` for one that is repeated.
    The source of a document with ``synthetic: true`` gets SYNTHETIC before it: all reports and weights tell it apart.

    Raises:
        UserError: as `source_files`, or no record has a usable text.
    """
    tables, rejected = [], []
    for path, name in source_files(source):
        for piece in pieces(path, name):
            table, problems = documents_of(piece)
            tables.append(table)
            rejected += problems
    table = pa.concat_tables(tables) if tables else EMPTY
    if not table.num_rows:
        raise UserError(f'{source.path}: no document with a "text"; {summary(rejected)}.')
    ids, order, renamed = unique_ids(table["id"], [table["text"], table["source"]])
    table = table.take(numbers(order)).set_column(0, SCHEMA.field("id"), ids)
    return Corpus(table.combine_chunks(), sorted(rejected), renamed)


def unique_ids(ids: pa.ChunkedArray, ties: list[pa.ChunkedArray]) -> tuple[pa.Array, np.ndarray, int]:
    """Ids of which none is repeated: the second document of an id gets ``#2`` appended, or the next number that is
    no other document's id. Which is the second is decided by ``ties``, never by where it was read.

    Returns:
        the ids in order, the rows in order of their ids (int64), how many got a new one.
    """
    order = pc.sort_indices(ids)
    found = join(ids.take(order))
    if not _repeated(found).any():
        return found, integers(order), 0
    names = [f"tie{k}" for k in range(len(ties))]
    table = pa.table([ids, *ties], ["id", *names])
    order = pc.sort_indices(table, [(name, "ascending") for name in ("id", *names)])
    found = join(ids.take(order))
    repeated = _repeated(found)
    taken = set(found.filter(pc.match_substring_regex(found, r"#\d+$")).to_pylist())
    new, name, number = [], None, 1
    for wanted in found.filter(flags(repeated)).to_pylist():
        number = number + 1 if wanted == name else 2
        name = wanted
        while f"{name}#{number}" in taken:
            number += 1
        new.append(f"{name}#{number}")
    found = pc.replace_with_mask(found, flags(repeated), strings(new))
    again = pc.sort_indices(found)
    return found.take(again), integers(order)[integers(again)], len(new)


def _repeated(ordered: pa.Array) -> np.ndarray:
    """bool (ids,): equal to the one before."""
    return np.append(np.zeros(min(1, len(ordered)), bool), truths(pc.equal(ordered[1:], ordered[:-1])))


def pieces(path: Path, name: str, size: int = PIECE) -> Iterator[Piece]:
    """The file at ``path`` in pieces of about ``size`` bytes; ``name`` is its path relative to its Source."""
    if kind_of(name) in JSONL:
        for block in blocks(path, size):
            yield Piece(name, block, block.number, len(block.data), block.position)
    elif kind_of(name) in PARQUET:
        yield from _parquet_pieces(path, name, size)
    else:
        for item in read_text_file(path, name):
            length = len(item.value["text"]) if isinstance(item, Record) else 0
            yield Piece(name, item, 1, length, path.stat().st_size)


def documents_of(piece: Piece) -> tuple[pa.Table, list[Rejected]]:
    """The usable documents of a piece, with SCHEMA's columns but ids not yet unique, and what is set aside."""
    if isinstance(piece.content, Block):
        return _from_lines(piece.content, piece.file)
    if isinstance(piece.content, pa.Table):
        return _from_parquet(piece.content, piece.file, piece.first)
    return _from_records([piece.content])


def _from_lines(block: Block, name: str) -> tuple[pa.Table, list[Rejected]]:
    if not block.problem and (found := _parsed(block, name)):
        return found
    smaller = [] if block.problem or len(block.data) <= FEW else list(_cut(block))
    if len(smaller) < 2:
        return _one_by_one(block, name)
    parts = [_from_lines(part, name) for part in smaller]
    return pa.concat_tables(table for table, _ in parts), [entry for _, rejected in parts for entry in rejected]


def _one_by_one(block: Block, name: str) -> tuple[pa.Table, list[Rejected]]:
    """What Python cannot read, fields nested a thousand deep or a number of a thousand digits, Arrow can where it need
    not look into it: it is asked too, so that a record does not depend on its neighbours."""
    items, tables, rejected = [], [], []
    lines = list(split(block))
    for line, item in zip(lines, read_lines(lines, name), strict=True):
        asked = isinstance(item, Rejected) and item.reason == MALFORMED
        if asked and (found := _parsed(Block(line.number, line.data, None, block.position), name)):
            tables.append(found[0])
            rejected += found[1]
        else:
            items.append(item)
    table, more = _from_records(items)
    return pa.concat_tables([table, *tables]), sorted(rejected + more)


def _cut(block: Block) -> Iterator[Block]:
    """The block in at most sixteen of whole lines."""
    number, start = block.number, 0
    step = max(FEW // 2, len(block.data) // 16)
    while start < len(block.data):
        stop = block.data.find(b"\n", start + step) + 1 or len(block.data)
        data = block.data[start:stop]
        yield Block(number, data, None, block.position)
        number, start = number + data.count(b"\n"), stop


def _parsed(block: Block, name: str) -> tuple[pa.Table, list[Rejected]] | None:
    """The documents of a block each line of which Arrow takes as `read_lines` would, or None."""
    data = block.data.removeprefix(BOM) if block.number == 1 else block.data
    if data[:1] in (b"", b"\n") and len(data) < len(block.data):
        return None  # a line with nothing else is no blank one
    at = _objects(data)
    if at is None or not utf8(data):
        return None
    for kind in (pa.large_string(), pa.int64()):
        try:
            table = pyarrow.json.read_json(
                pa.BufferReader(data),
                pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
                pyarrow.json.ParseOptions(
                    explicit_schema=pa.schema([("id", kind), *list(SCHEMA)[1:], ("synthetic", pa.bool_())]),
                    unexpected_field_behavior="ignore",
                ),
            )
        except pa.ArrowException:
            continue
        # As many objects as lines that begin and end as one: no line holds two, and none is spread over two.
        return _of_objects(table, at, block.number, name, data) if table.num_rows == len(at.lines) else None
    return None


class _At(NamedTuple):
    """Where the lines that are not empty stand: their numbers from 0 on, and their first and last bytes."""

    lines: np.ndarray
    starts: np.ndarray
    stops: np.ndarray


def _objects(data: bytes) -> _At | None:
    """The lines of ``data``, or None if one that is not empty does not begin with { and end with }, or is too long."""
    characters = np.frombuffer(data, np.uint8)
    newlines = np.flatnonzero(characters == ord("\n"))
    starts, stops = np.append(0, newlines + 1), np.append(newlines, len(data))
    lines = np.flatnonzero(stops > starts)
    starts, stops = starts[lines], stops[lines]
    stops = stops - (characters[stops - 1] == ord("\r"))
    if not len(lines) or not (stops > starts).all() or (stops - starts).max() >= LINE_LIMIT:
        return None
    whole = (characters[starts] == ord("{")) & (characters[stops - 1] == ord("}"))
    return _At(lines, starts, stops) if whole.all() else None


def _of_objects(table: pa.Table, at: _At, first: int, name: str, data: bytes) -> tuple[pa.Table, list[Rejected]]:
    texts, lines = join(table["text"]), first + at.lines
    documents = _completed([join(table[column]) for column in GIVEN], lines, name)
    blank = _blank(texts)
    if not blank.any():
        return documents, []
    bad = [Line(int(lines[row]), data[at.starts[row] : at.stops[row]], None) for row in np.flatnonzero(blank)]
    return documents.filter(flags(~blank)), _from_records(read_lines(bad, name))[1]


def _blank(texts: pa.Array) -> np.ndarray:
    """bool (documents,): null, or nothing but white space as Python knows it."""
    _, offsets, data = texts.buffers()
    offsets = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    blank = offsets[1:] == offsets[:-1]
    first = np.frombuffer(data, np.uint8)[offsets[:-1][~blank]] if data else np.zeros(0, np.uint8)
    maybe = np.flatnonzero(~blank)[(first <= ord(" ")) | (first > ord("~"))]
    heads = pc.utf8_slice_codeunits(texts.take(numbers(maybe)), 0, 1).to_pylist()
    for row, head in zip(maybe.tolist(), heads, strict=True):
        blank[row] = head.isspace() and not texts[row].as_py().strip()
    return blank


def _completed(given: list[pa.Array], lines: np.ndarray, name: str) -> pa.Table:
    """A table by SCHEMA of GIVEN's columns; null and empty ids become file:line, such sources the file's stem."""
    ids, texts, sources = (column.cast(pa.large_string()) for column in given[:3])
    missing = _missing(ids)
    if pc.any(missing).as_py():
        places = numbers(lines).cast(pa.large_string())
        places = pc.binary_join_element_wise(strings([name])[0], places, COLON)
        ids = pc.if_else(missing, places, ids)
    sources = pc.if_else(_missing(sources), strings([stem(name)])[0], sources)
    marked = pc.fill_null(given[3].cast(pa.bool_()), FALSE)
    if pc.any(marked).as_py():
        marked = pc.and_(marked, pc.invert(pc.starts_with(sources, SYNTHETIC)))
        sources = pc.if_else(marked, pc.binary_join_element_wise(MARK, sources, NOTHING), sources)
    return pa.table([ids, texts, sources], schema=SCHEMA)


def _missing(values: pa.Array) -> pa.Array:
    """bool (values,): null or empty."""
    return pc.fill_null(pc.equal(pc.binary_length(values), ZERO), TRUE)


def _parquet_pieces(path: Path, name: str, size: int) -> Iterator[Piece]:
    end = path.stat().st_size
    try:
        file = pq.ParquetFile(path, buffer_size=2**20)
    except (pa.ArrowException, OSError) as e:
        yield Piece(name, Rejected(name, 0, UNREADABLE, type(e).__name__), 0, 0, end)
        return
    with file:
        columns = [column for column in GIVEN if column in file.schema_arrow.names]
        first = after = 1  # row
        for group in range(file.num_row_groups):
            after += file.metadata.row_group(group).num_rows
            for content, rows in _row_group(file, group, columns, size, name, first):
                yield Piece(name, content, first, content.nbytes if rows else 0, end * first // file.metadata.num_rows)
                first += rows
            first = after


def _row_group(
    file: pq.ParquetFile, group: int, columns: list[str], size: int, name: str, first: int
) -> Iterator[tuple[pa.Table | Rejected, int]]:
    """The rows of a row group in tables of about ``size`` bytes, and how many; what is wrong with it, and 0."""
    held, problem, about = [], None, file.metadata.row_group(group)
    end = first + about.num_rows
    rows = max(1, min(BATCH, size * about.num_rows // max(1, about.total_byte_size)))
    batches = file.iter_batches(rows, [group], columns, use_threads=False)
    while not problem:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError, ValueError) as e:
            batch, problem = None, e
        held += [batch] if batch else []
        if held and (batch is None or sum(part.nbytes for part in held) >= size):
            table = pa.Table.from_batches(held)
            yield table, len(table)
            first, held = first + len(table), []
        if batch is None:
            break
    if problem:
        yield unreadable_rows(name, first, end - first, problem), 0


def _from_parquet(table: pa.Table, name: str, first: int) -> tuple[pa.Table, list[Rejected]]:
    lines, nothing = first + np.arange(len(table)), pa.nulls(len(table), pa.large_string())
    columns = [join(table[column]) if column in table.column_names else nothing for column in SCHEMA.names]
    marks = join(table["synthetic"]) if "synthetic" in table.column_names else pa.nulls(len(table), pa.bool_())
    plain = [_is_text(column) or (k == 0 and pa.types.is_integer(column.type)) for k, column in enumerate(columns)]
    if not all(plain) or not (pa.types.is_boolean(marks.type) or pa.types.is_null(marks.type)):
        return _from_records(table_rows(table, lines.tolist(), name))
    blank = _blank(columns[1].cast(pa.large_string()))
    documents = _completed([*columns, marks], lines, name)
    if not blank.any():
        return documents, []
    at = np.flatnonzero(blank)
    bad = table_rows(table.take(numbers(at)), lines[at].tolist(), name)
    return documents.filter(flags(~blank)), _from_records(bad)[1]


def _is_text(column: pa.Array) -> bool:
    """Whether these are strings, and UTF-8, which Parquet's readers do not look at."""
    kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        return False
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _from_records(records: Iterable[Record | Rejected]) -> tuple[pa.Table, list[Rejected]]:
    rows, rejected = [], []
    for record in records:
        if isinstance(record, Rejected):
            rejected.append(record)
        elif reason := _problem(record.value):
            rejected.append(Rejected(record.file, record.line, reason, excerpt(record.value)))
        else:
            rows.append((_identifier(record), record.value["text"], _origin(record)))
    columns = [strings([row[k] for row in rows]) for k in range(len(SCHEMA))]
    return pa.table(columns, schema=SCHEMA), rejected


def _problem(value: dict[str, Any]) -> str | None:
    text = value.get("text")
    if text is None:
        return "missing text"
    if not isinstance(text, str):
        return "text is not a string"
    if not text.strip():
        return "empty text"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "invalid UTF-8"
    return None if value.get("synthetic") in (None, False, True) else "synthetic is neither true nor false"


def _identifier(record: Record) -> str:
    name = record.value.get("id")
    usable = isinstance(name, str | int) and not isinstance(name, bool) and str(name)
    return _storable(str(name)) if usable else f"{record.file}:{record.line}"


def _origin(record: Record) -> str:
    name = record.value.get("source")
    name = _storable(name) if isinstance(name, str) and name else stem(record.file)
    return SYNTHETIC + name if record.value.get("synthetic") and not name.startswith(SYNTHETIC) else name


def _storable(name: str) -> str:
    return name.encode("utf-8", "replace").decode("utf-8")
