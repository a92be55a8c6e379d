"""Records of what a person points at: JSONL, Parquet or text, one bad record never costing a good one."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from stages.contract.errors import UserError
from stages.contract.params import Source
from stages.corpus.streams import COMPRESSED, EXCERPT, Line, lines, whole

JSONL = (".jsonl", ".json", ".ndjson")
PARQUET = (".parquet",)
TEXT = (".txt", ".md")
MALFORMED = "malformed JSON"
UNREADABLE = "unreadable Parquet"


class Record(NamedTuple):
    """One JSON object, Parquet row or text file; ``file`` relative to its Source, ``line`` from 1."""

    file: str
    line: int
    value: dict[str, Any]


class Rejected(NamedTuple):
    """What was set aside, and why. ``line`` 0 is the file as a whole."""

    file: str
    line: int
    reason: str
    excerpt: str


def read_records(source: Source) -> tuple[list[Record], list[Rejected]]:
    """Every JSON object, Parquet row or text file of ``source``, and what could not be read.

    Files are taken in order of their relative path. A text file is one record: its path is the id.

    Raises:
        UserError: no such path, no matching file, a file of unknown type, nothing readable at all.
    """
    records: list[Record] = []
    rejected: list[Rejected] = []
    for path, name in source_files(source):
        for item in _read_file(path, name):
            (records if isinstance(item, Record) else rejected).append(item)
    if not records:
        raise UserError(f"{source.path}: no readable record; {summary(rejected)}.")
    return records, rejected


def source_files(source: Source) -> list[tuple[Path, str]]:
    """The files of ``source`` with their relative paths, in order of these. Hidden files are left out.

    Raises:
        UserError: no such path, no matching file, a file of unknown type.
    """
    root = Path(source.path)
    if root.is_file():
        found = [(root, root.name)]
    elif root.is_dir():
        paths = filter(Path.is_file, matching(root, source))
        names = sorted((path.relative_to(root).as_posix(), path) for path in paths)
        found = [(path, name) for name, path in names if not any(p.startswith(".") for p in name.split("/"))]
    else:
        raise UserError(f"{source.path}: no such file or folder. Put it there, or change the path in params.yaml.")
    if not found:
        raise UserError(f"{source.path}: no file matches {source.files!r}. Change `files` in params.yaml.")
    for _, name in found:
        if kind_of(name) not in JSONL + PARQUET + TEXT:
            raise UserError(
                f"{source.path}: {name}: unknown type of file. Known: {' '.join(JSONL + PARQUET + TEXT)}, JSONL and "
                f'text also with {" or ".join(COMPRESSED)}. Narrow `files` in params.yaml, e.g. "**/*.jsonl".'
            )
    return found


def matching(folder: Path, source: Source) -> list[Path]:
    """What matches ``source.files`` in ``folder``.

    Raises:
        UserError: it is no pattern.
    """
    try:
        return list(folder.glob(source.files))
    except (ValueError, NotImplementedError, IndexError) as e:
        raise UserError(f"{source.path}: files: {source.files!r} is not a pattern: {e}.") from None


def write_rejected(path: Path, rejected: Iterable[Rejected]) -> None:
    """JSON lines {file, line, reason, excerpt}, in order of file and line."""
    with path.open("wb") as f:
        for entry in sorted(rejected):
            f.write(orjson.dumps(entry._asdict(), option=orjson.OPT_APPEND_NEWLINE))


def count_reasons(rejected: Iterable[Rejected]) -> dict[str, int]:
    """How many records each reason set aside, by reason."""
    return dict(sorted(Counter(entry.reason for entry in rejected).items()))


def _read_file(path: Path, name: str) -> Iterator[Record | Rejected]:
    kind = kind_of(name)
    if kind in JSONL:
        return read_lines(lines(path), name)
    return _read_parquet(path, name) if kind in PARQUET else read_text_file(path, name)


def read_lines(found: Iterable[Line], name: str) -> Iterator[Record | Rejected]:
    """Each line of the JSONL file ``name`` as a record, or why it is none."""
    for number, data, problem in found:
        if problem:
            yield Rejected(name, number, problem, printable(data))
            continue
        value, problem = _parse(data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data)
        yield Rejected(name, number, problem, printable(data)) if problem else Record(name, number, value)


def _parse(data: bytes) -> tuple[dict[str, Any], str | None]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            # NaN, Infinity and very long integers, which Python writes and orjson refuses.
            value = json.loads(data.decode("utf-8"))
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (UnicodeDecodeError, UnicodeEncodeError):
            return {}, "invalid UTF-8"
        except (ValueError, RecursionError):
            return {}, MALFORMED
    return (value, None) if isinstance(value, dict) else ({}, "not a JSON object")


def _read_parquet(path: Path, name: str) -> Iterator[Record | Rejected]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as e:
        yield Rejected(name, 0, UNREADABLE, type(e).__name__)
        return
    with file:
        first = 1
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            try:
                yield from table_rows(file.read_row_group(group), range(first, first + rows), name)
            except (pa.ArrowException, OSError) as e:
                yield unreadable_rows(name, first, rows, e)
            first += rows


def table_rows(table: pa.Table, numbers: Iterable[int], name: str) -> Iterator[Record | Rejected]:
    """The rows of a table as records of the file ``name`` with these ``numbers``."""
    for row, number in enumerate(numbers):
        try:
            yield Record(name, number, table.slice(row, 1).to_pylist()[0])
        except ValueError as e:  # invalid UTF-8, which Parquet's readers do not look at; a date before the year 1
            reason = "invalid UTF-8" if isinstance(e, UnicodeDecodeError) else UNREADABLE
            yield Rejected(name, number, reason, type(e).__name__)


def unreadable_rows(name: str, first: int, rows: int, error: Exception) -> Rejected:
    """What stands for ``rows`` rows of a damaged Parquet file, from row ``first`` on."""
    return Rejected(name, first, UNREADABLE, f"{type(error).__name__}, {rows:,} rows")


def read_text_file(path: Path, name: str) -> Iterator[Record | Rejected]:
    """The one record of a text file: its relative path is the id, its folder the source."""
    data, problem = whole(path)
    if problem:
        yield Rejected(name, 1, problem, printable(data[:EXCERPT]))
        return
    try:
        text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
        yield Record(name, 1, {"id": name, "text": text, "source": path.absolute().parent.name})
    except UnicodeDecodeError:
        yield Rejected(name, 1, "invalid UTF-8", printable(data[:EXCERPT]))


def kind_of(name: str) -> str:
    """The suffix that says how to read the file ``name``, that of its compression left out."""
    path = Path(name.lower())
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def stem(name: str) -> str:
    """A file's name without its suffixes and folders."""
    path = Path(name)
    return Path(path.stem).stem if path.suffix.lower() in COMPRESSED else path.stem


def excerpt(value: Any) -> str:
    """The beginning of a record, or of what it says, for a person to recognise it by."""
    try:
        shown = repr(value)
    except RecursionError:  # nested a thousand deep
        shown = repr(list(value))[:EXCERPT] if isinstance(value, dict) else "nested too deep to be shown"
    return printable(shown[:EXCERPT].encode("utf-8", "replace"))


def printable(data: bytes) -> str:
    """The beginning of ``data`` as text without control characters."""
    text = data[:EXCERPT].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "�" for c in text)


def summary(rejected: list[Rejected]) -> str:
    """What was set aside, for the message that there was nothing else."""
    if not rejected:
        return "every file is empty"
    reasons = ", ".join(f"{count} x {reason}" for reason, count in count_reasons(rejected).items())
    first = min(rejected)
    return f"{reasons} (first: {first.file}, line {first.line}). JSONL is one JSON object on each line"
