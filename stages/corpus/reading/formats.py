"""FORMATS: a row a file format, with its endings and its readers; and the reader of text files."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from stages.corpus.reading.csv_files import read_csv
from stages.corpus.reading.json_lines import json_pieces, read_json_lines
from stages.corpus.reading.parquet import parquet_pieces, read_parquet
from stages.corpus.reading.rejections import Record, Rejected, printable
from stages.corpus.reading.streams import EXCERPT, ending, whole
from stages.corpus.reading.tables import Fields, Piece, record_pieces


class Format(NamedTuple):
    """The reader of files with one of ``endings``: of ``records``, and of documents in ``pieces``.

    Both take the file's path, and its path relative to the Source; ``pieces`` also the bytes of a piece, about, and the
    Source's fields. Bad content is yielded as rejected and raises nothing.
    """

    endings: tuple[str, ...]
    records: Callable[[Path, str], Iterator[Record | Rejected]]
    pieces: Callable[[Path, str, int, Fields], Iterator[Piece]]


def read_text_file(path: Path, name: str) -> Iterator[Record | Rejected]:
    """Yield the one record of a text file: its relative path is the id, its folder the source."""
    data, problem = whole(path)
    try:
        if not problem:
            text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
            yield Record(name, 1, {"id": name, "text": text, "source": path.absolute().parent.name})
            return
    except UnicodeDecodeError:
        problem = "invalid UTF-8"
    yield Rejected(name, 1, problem, printable(data[:EXCERPT]))


TEXT = (".txt", ".md")
FORMATS = (
    Format((".jsonl", ".json", ".ndjson"), read_json_lines, json_pieces),
    Format((".parquet",), read_parquet, parquet_pieces),
    Format((".csv", ".tsv"), read_csv, partial(record_pieces, read_csv)),
    Format(TEXT, read_text_file, partial(record_pieces, read_text_file)),
)
BY_ENDING = {one: form for form in FORMATS for one in form.endings}


def is_known(name: str) -> bool:
    """Return whether the file ``name`` has a format."""
    return ending(name) in BY_ENDING


def is_text(name: str) -> bool:
    """Return whether the file ``name`` is one document and not a list of records."""
    return ending(name) in TEXT


def format_of(name: str) -> Format:
    """Return the format of the file ``name``, which `is_known`."""
    return BY_ENDING[ending(name)]
