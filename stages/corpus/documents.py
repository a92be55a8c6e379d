"""Reading what a person points at: JSONL, Parquet or text, one bad record never costing a good one."""

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
from stages.corpus.streams import COMPRESSED, EXCERPT, lines, whole

JSONL = (".jsonl", ".json", ".ndjson")
PARQUET = (".parquet",)
TEXT = (".txt", ".md")

SCHEMA = pa.schema([("id", pa.large_string()), ("text", pa.large_string()), ("source", pa.large_string())])


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


class Corpus(NamedTuple):
    """``table`` has SCHEMA's columns, unique ids, rows in order of id."""

    table: pa.Table
    rejected: list[Rejected]
    renamed: int  # documents whose id was taken


def read_documents(source: Source) -> Corpus:
    """Every usable document of ``source``: id, text and source as strings.

    A missing id becomes ``file:line``, a repeated one gets ``#2``, ``#3`` ... appended, a missing source
    becomes the file's stem.

    Raises:
        UserError: as `read_records`, or no record has a usable text.
    """
    records, rejected = read_records(source)
    rows, copies, renamed = [], {}, 0
    for record in records:
        reason = _text_problem(record.value)
        if reason:
            rejected.append(Rejected(record.file, record.line, reason, _excerpt(record.value)))
            continue
        name = unique = _identifier(record)
        while unique in copies:
            copies[name] += 1
            unique = f"{name}#{copies[name]}"
        copies[unique] = 1
        renamed += unique != name
        rows.append((unique, record.value["text"], _origin(record)))
    if not rows:
        raise UserError(f'{source.path}: no document with a "text"; {_summary(rejected)}.')
    rows.sort()
    columns = [pa.array(column, pa.large_string()) for column in zip(*rows, strict=True)]
    return Corpus(pa.table(columns, schema=SCHEMA), sorted(rejected), renamed)


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
        raise UserError(f"{source.path}: no readable record; {_summary(rejected)}.")
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
        try:
            paths = [path for path in root.glob(source.files) if path.is_file()]
        except (ValueError, NotImplementedError, IndexError) as e:
            raise UserError(f"{source.path}: files: {source.files!r} is not a pattern: {e}.") from None
        names = sorted((path.relative_to(root).as_posix(), path) for path in paths)
        found = [(path, name) for name, path in names if not any(p.startswith(".") for p in name.split("/"))]
    else:
        raise UserError(f"{source.path}: no such file or folder. Put it there, or change the path in params.yaml.")
    if not found:
        raise UserError(f"{source.path}: no file matches {source.files!r}. Change `files` in params.yaml.")
    for _, name in found:
        if _kind(name) not in JSONL + PARQUET + TEXT:
            raise UserError(
                f"{source.path}: {name}: unknown type of file. Known: {' '.join(JSONL + PARQUET + TEXT)}, JSONL and "
                f'text also with {" or ".join(COMPRESSED)}. Narrow `files` in params.yaml, e.g. "**/*.jsonl".'
            )
    return found


def write_rejected(path: Path, rejected: Iterable[Rejected]) -> None:
    """JSON lines {file, line, reason, excerpt}, in order of file and line."""
    with path.open("wb") as f:
        for entry in sorted(rejected):
            f.write(orjson.dumps(entry._asdict(), option=orjson.OPT_APPEND_NEWLINE))


def count_reasons(rejected: Iterable[Rejected]) -> dict[str, int]:
    """How many records each reason set aside, by reason."""
    return dict(sorted(Counter(entry.reason for entry in rejected).items()))


def _read_file(path: Path, name: str) -> Iterator[Record | Rejected]:
    kind = _kind(name)
    if kind in JSONL:
        return _read_jsonl(path, name)
    return _read_parquet(path, name) if kind in PARQUET else _read_text(path, name)


def _read_jsonl(path: Path, name: str) -> Iterator[Record | Rejected]:
    for number, data, problem in lines(path):
        if problem:
            yield Rejected(name, number, problem, _printable(data))
            continue
        value, problem = _parse(data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data)
        yield Rejected(name, number, problem, _printable(data)) if problem else Record(name, number, value)


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
            return {}, "malformed JSON"
    return (value, None) if isinstance(value, dict) else ({}, "not a JSON object")


def _read_parquet(path: Path, name: str) -> Iterator[Record | Rejected]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as e:
        yield Rejected(name, 0, "unreadable Parquet", type(e).__name__)
        return
    with file:
        first = 1
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            try:
                values = file.read_row_group(group).to_pylist()
            except (pa.ArrowException, OSError, ValueError) as e:
                yield Rejected(name, first, "unreadable Parquet", type(e).__name__)
                values = []
            for line, value in enumerate(values, first):
                yield Record(name, line, value)
            first += rows


def _read_text(path: Path, name: str) -> Iterator[Record | Rejected]:
    data, problem = whole(path)
    if problem:
        yield Rejected(name, 1, problem, _printable(data[:EXCERPT]))
        return
    try:
        text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
        yield Record(name, 1, {"id": name, "text": text, "source": path.absolute().parent.name})
    except UnicodeDecodeError:
        yield Rejected(name, 1, "invalid UTF-8", _printable(data[:EXCERPT]))


def _text_problem(value: dict[str, Any]) -> str | None:
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
    return None


def _identifier(record: Record) -> str:
    name = record.value.get("id")
    usable = isinstance(name, str | int) and not isinstance(name, bool) and str(name)
    return _storable(str(name)) if usable else f"{record.file}:{record.line}"


def _origin(record: Record) -> str:
    name = record.value.get("source")
    return _storable(name) if isinstance(name, str) and name else _stem(record.file)


def _storable(name: str) -> str:
    return name.encode("utf-8", "replace").decode("utf-8")


def _kind(name: str) -> str:
    path = Path(name.lower())
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def _stem(name: str) -> str:
    path = Path(name)
    return Path(path.stem).stem if path.suffix.lower() in COMPRESSED else path.stem


def _excerpt(value: dict[str, Any]) -> str:
    return _printable(repr(value)[:EXCERPT].encode("utf-8", "replace"))


def _printable(data: bytes) -> str:
    text = data[:EXCERPT].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "�" for c in text)


def _summary(rejected: list[Rejected]) -> str:
    if not rejected:
        return "every file is empty"
    reasons = ", ".join(f"{count} x {reason}" for reason, count in count_reasons(rejected).items())
    first = min(rejected)
    return f"{reasons} (first: {first.file}, line {first.line}). JSONL is one JSON object on each line"
