"""Read JSON lines, and arrays as such: each line is a record, or a document.

Arrow parses documents a block at a time, without the GIL, if it and `read_lines` understand every line of the block
alike. Any other block is cut into smaller ones, down to a few lines that are read one by one.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.json

from stages.corpus.reading.json_arrays import as_lines
from stages.corpus.reading.rejections import KEPT, Record, Rejected, Rejections, excerpt, printable
from stages.corpus.reading.streams import LINE_LIMIT, Block, Line, blocks, lines, split
from stages.corpus.reading.tables import (
    EMPTY,
    FIRST,
    FieldNames,
    Fields,
    ParsedDocuments,
    Piece,
    blank_rows,
    completed,
    count_blank,
    document_problem,
    from_records,
    names_of,
)
from stages.corpus.text.arrays import flags, join, utf8

MALFORMED = "malformed JSON"
SHORT = 64  # bytes of a line whose reason is cached: a file may have a hundred million of them
BOM = b"\xef\xbb\xbf"
_WHITE = np.isin(np.arange(256), list(b" \t\n\r\x0b\x0c"))
FEW = 2**16  # bytes of a block that is read one by one if Arrow does not understand it
TYPES = (pa.large_string(), pa.large_string(), pa.bool_())  # of text, source, synthetic
NESTED = 900  # least bytes of a line that Arrow can read and Python cannot: see `_one_by_one`


def read_json_lines(path: Path, name: str) -> Iterator[Record | Rejected]:
    """Yield the lines of a JSONL file as records, and the rejected ones."""
    return read_lines(lines(path, decode=as_lines), name)


def json_pieces(path: Path, name: str, size: int, fields: Fields) -> Iterator[Piece]:
    """Yield the documents of a JSONL file in pieces of about ``size`` bytes."""
    names = None
    for block in blocks(path, size, decode=as_lines):
        names = names or names_of(islice(read_lines(split(block), name), FIRST), fields)
        yield Piece(len(block.data), block.position, partial(documents_of_lines, block, name, names))


def read_lines(found: Iterable[Line], name: str) -> Iterator[Record | Rejected]:
    """Yield each line of the JSONL file ``name`` as a record, or rejected."""
    for number, data, problem in found:
        if problem:
            yield Rejected(name, number, problem, printable(data))
            continue
        data = data.removeprefix(BOM) if number == 1 else data
        if len(data) <= SHORT and (rejected := _no_record(data)):
            yield Rejected(name, number, *rejected)
            continue
        value, problem = _parse(data)
        yield Rejected(name, number, problem, printable(data)) if problem else Record(name, number, value)


@lru_cache(2**12)
def _no_record(data: bytes) -> tuple[str, str] | None:
    """Return the reason why a short line is not a record, and its excerpt."""
    _, problem = _parse(data)
    return (problem, printable(data)) if problem else None


def _parse(data: bytes) -> tuple[dict[str, Any], str | None]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            value = json.loads(data.decode("utf-8"))  # orjson refuses NaN, Infinity and very long integers
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair cannot be encoded
        except (UnicodeDecodeError, UnicodeEncodeError):
            return {}, "invalid UTF-8"
        except (ValueError, RecursionError):
            return {}, MALFORMED
    return (value, None) if isinstance(value, dict) else ({}, "not a JSON object")


def documents_of_lines(block: Block, name: str, names: FieldNames) -> ParsedDocuments:
    """Return the documents of a block of the JSONL file ``name``, and the rejected lines."""
    if not block.problem and block.data.count(b"\n") * SHORT > len(block.data):
        if len(block.data) > 16 * FEW:  # `_without_short` takes forty bytes and more a line
            return _joined(documents_of_lines(part, name, names) for part in _cut(block))
        block, short = _without_short(block, name, names)
        table, rejected = _from_long(block, name, names)
        return table, short.merge(rejected)
    return _from_long(block, name, names)


def _without_short(block: Block, name: str, names: FieldNames) -> tuple[Block, Rejections]:
    """Return the block with blank lines in place of short unusable ones, and these as rejected.

    Equal lines are parsed once: a few bytes of a compressed file may stand for twenty million of them.
    """
    lines, rejected = block.data.split(b"\n"), Rejections()
    counts = Counter(line for line in lines if len(line) <= SHORT)
    problems = {line: found for line in counts if line.strip() and (found := _no_document(line, names))}
    if block.number == 1 and lines[0].startswith(BOM):
        problems.pop(lines[0], None)  # good without it
    if not problems:
        return block, rejected
    for number, line in enumerate(lines, block.number):
        if line in problems:
            rejected.append(Rejected(name, number, *problems[line]))
            counts[line] -= 1
            if len(rejected) == KEPT:
                break
    for line, (reason, _) in problems.items():
        rejected.count(reason, counts[line])
    data = b"\n".join([b"" if line in problems else line for line in lines])
    return block._replace(data=data), rejected


@lru_cache(2**12)
def _no_document(data: bytes, names: FieldNames) -> tuple[str, str] | None:
    """Return why a line is no document, and its excerpt."""
    item = next(read_lines([Line(2, data, None)], ""))
    if isinstance(item, Rejected):
        return item.reason, item.excerpt
    reason = document_problem(item.value, names)
    return (reason, excerpt(item.value)) if reason else None


def _from_long(block: Block, name: str, names: FieldNames) -> ParsedDocuments:
    if not block.problem and (found := _parsed(block, name, names)):
        return found
    smaller = [] if block.problem or len(block.data) <= FEW else list(_cut(block))
    if len(smaller) < 2:
        return _one_by_one(block, name, names)
    return _joined(_from_long(part, name, names) for part in smaller)


def _joined(parts: Iterable[ParsedDocuments]) -> ParsedDocuments:
    tables, rejected = [], Rejections()
    for table, problems in parts:
        tables.append(table)
        rejected.extend(problems)
    return pa.concat_tables(tables), rejected


def _one_by_one(block: Block, name: str, names: FieldNames) -> ParsedDocuments:
    """Read lines that Arrow does not take together.

    Arrow skips fields that Python cannot parse: nesting a thousand deep, a number of a thousand digits. It tries these
    lines too, so that a record does not depend on its neighbors.
    """
    lines, found = list(split(block)), []

    def usable() -> Iterator[Record | Rejected]:
        for line, item in zip(lines, read_lines(lines, name), strict=True):
            asked = isinstance(item, Rejected) and item.reason == MALFORMED and len(line.data) >= NESTED
            if asked and (parsed := _parsed(Block(line.number, line.data, None, block.position), name, names)):
                found.append(parsed[0])
                yield from parsed[1]
            else:
                yield item

    table, rejected = from_records(usable(), names)
    return pa.concat_tables([table, *found]), rejected


def _cut(block: Block) -> Iterator[Block]:
    """Cut a block into at most sixteen blocks of whole lines."""
    number, start = block.number, 0
    step = max(FEW // 2, len(block.data) // 16)
    while start < len(block.data):
        stop = block.data.find(b"\n", start + step) + 1 or len(block.data)
        data = block.data[start:stop]
        yield Block(number, data, None, block.position)
        number, start = number + data.count(b"\n"), stop


def _parsed(block: Block, name: str, names: FieldNames) -> ParsedDocuments | None:
    """Parse a block with Arrow; None if `read_lines` might understand a line of it differently."""
    if block.data.isspace():
        return EMPTY, Rejections()
    data = block.data.removeprefix(BOM) if block.number == 1 else block.data
    if data[:1] in (b"", b"\n") and len(data) < len(block.data):
        return None  # `read_lines` does not take a line of only BOM for a blank one
    at = _objects(data)
    if at is None or not utf8(data):
        return None
    for kind in (pa.large_string(), pa.int64()):
        try:
            table = pyarrow.json.read_json(
                pa.BufferReader(data),
                pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
                pyarrow.json.ParseOptions(
                    explicit_schema=pa.schema(list(zip(names, (kind, *TYPES), strict=True))),
                    unexpected_field_behavior="ignore",
                ),
            )
        except pa.ArrowException:
            continue
        # As many objects as lines that begin and end like one: none has two, and none is spread over two.
        return _of_objects(table, at, block.number, name, names, data) if table.num_rows == len(at.lines) else None
    return None


class _At(NamedTuple):
    """Places of lines that are not blank: numbers from 0 on, first bytes, and ends."""

    lines: np.ndarray
    starts: np.ndarray
    stops: np.ndarray


def _objects(data: bytes) -> _At | None:
    """Return the lines of ``data``; None if there is none, one is too long, or one is not of the form `{...}`."""
    if not data:
        return None
    characters = np.frombuffer(data, np.uint8)
    newlines = np.flatnonzero(characters == ord("\n"))
    starts, stops = np.append(0, newlines + 1), np.append(newlines, len(data))
    stops = stops - ((stops > starts) & (characters[stops - 1] == ord("\r")))
    lines = np.flatnonzero(stops > starts)
    starts, stops = starts[lines], stops[lines]
    whole = (characters[starts] == ord("{")) & (characters[stops - 1] == ord("}"))
    if _WHITE[characters[starts[~whole]]].all():  # maybe blank
        written = np.append(0, np.cumsum(~_WHITE[characters]))
        stays = written[stops] > written[starts]
        lines, starts, stops, whole = lines[stays], starts[stays], stops[stays], whole[stays]
    if not len(lines) or not whole.all() or (stops - starts).max() >= LINE_LIMIT:
        return None
    return _At(lines, starts, stops)


def _of_objects(table: pa.Table, at: _At, first: int, name: str, names: FieldNames, data: bytes) -> ParsedDocuments:
    texts, numbers = join(table[names.text]), first + at.lines
    blank, columns = blank_rows(texts), [join(table[column]) for column in names]
    if not blank.any():
        return completed(columns, numbers, name), Rejections()
    documents = completed([column.filter(flags(~blank)) for column in columns], numbers[~blank], name)
    rows = np.flatnonzero(blank)
    bad = [Line(int(numbers[row]), data[at.starts[row] : at.stops[row]], None) for row in rows[:KEPT]]
    rejected = from_records(read_lines(bad, name), names)[1]
    count_blank(texts, rows[KEPT:], rejected)
    return documents, rejected
