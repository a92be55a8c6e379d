"""Read the documents of a Source into one table: id, text and source. For corpora that fit into memory."""

from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.contract.errors import UserError, shorten
from stages.contract.params import Source
from stages.corpus.reading.formats import format_of
from stages.corpus.reading.records import each_record
from stages.corpus.reading.rejections import Record, Rejections, summary
from stages.corpus.reading.sources import source_files
from stages.corpus.reading.tables import EMPTY, FIRST, SCHEMA, TEXTS, Fields, names_of
from stages.corpus.text.arrays import flags, integers, join, numbers, strings, truths

PIECE = 4 * 2**20  # bytes


class Corpus(NamedTuple):
    """``table`` has SCHEMA's columns and unique ids, and is sorted by them; ``renamed`` counts ids that were taken."""

    table: pa.Table
    rejected: Rejections
    renamed: int


def read_documents(source: Source) -> Corpus:
    """Return every usable document of ``source``: id, text and source as strings.

    A missing id becomes `file:line`, a missing source the file's stem; `unique_ids` renames repeated ids. The source of
    a document with `synthetic: true` gets the prefix SYNTHETIC, so that all reports and weights can select it.

    Raises:
        UserError: as `source_files`, or no record has a usable text.
    """
    usable, rejected = [], Rejections()
    for path, name in source_files(source):
        for piece in format_of(name).pieces(path, name, PIECE, source.fields):
            table, problems = piece.documents()
            usable.append(table)
            rejected.extend(problems)
    table = pa.concat_tables(usable) if usable else EMPTY
    if not table.num_rows:
        raise no_documents(source, rejected)
    ids, order, renamed = unique_ids(table["id"], [table["text"], table["source"]])
    table = table.take(numbers(order)).set_column(0, SCHEMA.field("id"), ids)
    return Corpus(table.combine_chunks(), rejected, renamed)


def text_names(files: list[tuple[Path, str]], fields: Fields) -> list[str]:
    """Return the names of the text field in ``files``, some of a Source with ``fields``; each name once."""
    found: dict[str, None] = {}
    for path, name in files:
        first = list(islice(format_of(name).records(path, name), FIRST))
        text = names_of(first, fields).text
        if any(isinstance(item, Record) and text in item.value for item in first):
            found[text] = None
    return list(found)


def no_documents(source: Source, rejected: Rejections) -> UserError:
    """Return the error that ``source`` has no usable text: the reasons, the fields it has, and the remedy."""
    line = f'{source.path}: no document with a "text"; {summary(rejected)}.'
    records = [item.value for item in islice(each_record(source), FIRST) if isinstance(item, Record)]
    names = list(dict.fromkeys(name for value in records for name in value))
    if set(names) & set(TEXTS) or not names:
        return UserError(line)
    longest = max(names, key=lambda name: sum(len(v) for r in records if isinstance(v := r.get(name), str)))
    return UserError(
        f"{line} Fields: {shorten(', '.join(names), 200)}. A text may be called {', '.join(TEXTS)}. If yours has "
        f"another name, write it in params.yaml, e.g. fields: {{text: {shorten(longest, 40)}}}."
    )


def unique_ids(ids: pa.ChunkedArray, ties: list[pa.ChunkedArray]) -> tuple[pa.Array, np.ndarray, int]:
    """Rename repeated ids: the second document of an id gets `#2` appended, or the next number that is free.

    Args:
        ids: strings.
        ties: columns that order the documents of one id, so that it does not matter where they were read.

    Returns:
        the sorted ids, the rows in their order (int64), the number of renamed ones.
    """
    order = pc.sort_indices(ids)
    ordered = join(ids.take(order))
    if not _repeated(ordered).any():
        return ordered, integers(order), 0
    names = [f"tie{k}" for k in range(len(ties))]
    table = pa.table([ids, *ties], ["id", *names])
    order = pc.sort_indices(table, [(name, "ascending") for name in ("id", *names)])
    ordered = join(ids.take(order))
    repeated = _repeated(ordered)
    taken = set(ordered.filter(pc.match_substring_regex(ordered, r"#\d+$")).to_pylist())
    new, name, number = [], None, 1
    for wanted in ordered.filter(flags(repeated)).to_pylist():
        number = number + 1 if wanted == name else 2
        name = wanted
        while f"{name}#{number}" in taken:
            number += 1
        new.append(f"{name}#{number}")
    ordered = pc.replace_with_mask(ordered, flags(repeated), strings(new))
    again = pc.sort_indices(ordered)
    return ordered.take(again), integers(order)[integers(again)], len(new)


def _repeated(ordered: pa.Array) -> np.ndarray:
    """Return bool (ids,): equal to the one before."""
    return np.append(np.zeros(min(1, len(ordered)), bool), truths(pc.equal(ordered[1:], ordered[:-1])))
