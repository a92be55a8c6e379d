"""Read CSV and TSV files: each row is a record, or a document; the first row has the fields' names."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from stages.corpus.reading.rejections import SAME_NAME, Record, Rejected, printable
from stages.corpus.reading.streams import BROKEN, LINE_LIMIT, chunks, ending

DELIMITERS = ",;\t|"
UNEQUAL = "other number of fields than the first line"


def read_csv(path: Path, name: str) -> Iterator[Record | Rejected]:
    """Yield the rows of a CSV or TSV file as records, and the rejected ones; empty cells are no fields.

    The delimiter of CSV is the one of `,` `;` tab and `|` that the first line has most of.
    """
    csv.field_size_limit(LINE_LIMIT)
    lines = _Lines(path)
    first = lines.first.rstrip("\r\n")
    delimiter = "\t" if ending(name) == ".tsv" else max(DELIMITERS, key=first.count)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    fields: list[str] = []
    number = 0
    while True:
        start = rows.line_num + 1
        try:
            row = next(rows)
            if not row:
                continue
        except StopIteration:
            break
        except csv.Error as e:
            number += 1
            yield Rejected(name, number, "malformed CSV", printable(f"line {start}: {e}".encode()))
            continue
        if fields:
            number += 1
            yield _record(name, number, fields, row)
        elif problem := _problem(fields := [field.strip() for field in row]):
            yield Rejected(name, 0, problem, printable(_bytes(fields)))
            return
    if lines.broken:
        yield Rejected(name, number + 1, BROKEN, "")


def _problem(fields: list[str]) -> str | None:
    """Return why a file with these fields cannot be used, or None."""
    named = [field for field in fields if field]
    if len(set(named)) < len(named):
        return SAME_NAME
    return None if _is_utf8(_bytes(fields)) else "invalid UTF-8"


def _record(name: str, number: int, fields: list[str], row: list[str]) -> Record | Rejected:
    if not _is_utf8(content := _bytes(row)):
        return Rejected(name, number, "invalid UTF-8", printable(content))
    if len(row) != len(fields):
        return Rejected(name, number, UNEQUAL, printable(content))
    return Record(name, number, {field: cell for field, cell in zip(fields, row, strict=True) if field and cell})


def _bytes(row: list[str]) -> bytes:
    return ",".join(row).encode("utf-8", "surrogateescape")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


class _Lines:
    """Iterate over the lines of a file as text, with their newlines; bytes that are not UTF-8 are escaped.

    ``first`` is the first line; ``broken`` tells at the end whether the compressed stream was damaged.
    """

    def __init__(self, path: Path) -> None:
        self.broken = False
        self._lines = self._read(path)
        self.first = next(self._lines, "")
        self._pending = [self.first] if self.first else []

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        return self._pending.pop() if self._pending else next(self._lines)

    def _read(self, path: Path) -> Iterator[str]:
        rest = b""
        for number, (chunk, _) in enumerate(chunks(path)):
            if chunk is None:
                self.broken = True
                break
            data = rest + (chunk.removeprefix(b"\xef\xbb\xbf") if number == 0 else chunk)
            whole, newline, rest = data.rpartition(b"\n")
            if len(rest) > LINE_LIMIT:
                whole, rest = data, b""  # `csv` rejects a field that is too long
            yield from io.StringIO((whole + newline).decode("utf-8", "surrogateescape"), newline="")
        if rest:
            yield rest.decode("utf-8", "surrogateescape")
