"""The pretokens of a corpus, which GPT-2's pattern cuts texts into, and how often each occurs, in bounded memory.

Byte-pair merges are made inside pretokens, so their counts are all that a vocabulary is learned from. Where there are
more different ones than there is room for, the rarest are forgotten on the way, over and over (lossy counting: Manku
and Motwani 2002): what stays is what a merge could be learned from, counted a little too low if it is rare.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.corpus.arrays import numbers
from stages.corpus.batches import batches
from stages.corpus.quiet import quiet

ROOM = 12 * 2**20  # bytes of different pretokens, and BESIDE more for each; merges of so many take half a gigabyte
BESIDE = 4
BETWEEN = b"\xff"  # stands between documents: no text in UTF-8 has it
PART = 2**21  # bytes of text looked at together
ROWS = 2**20  # of Parquet in a row group


def count_pretokens(
    documents: Path | pa.Table, room: int = ROOM, progress: Callable[[int], None] = lambda n: None
) -> dict[bytes, int]:
    """How often each occurs in the column text, all of them if they fit into ``room``."""
    from gigatoken.gigatoken_rs import pretokenized_counts

    counts: dict[bytes, int] = {}
    taken = 0
    for batch in batches(documents, ["text"]):
        for part in _parts(batch):
            with quiet():
                found = pretokenized_counts(_joined(part["text"]), BETWEEN)
            for pretoken, count in found:
                if pretoken in counts:
                    counts[pretoken] += count
                else:
                    counts[pretoken] = count
                    taken += len(pretoken) + BESIDE
            if taken > room:
                taken = _forget_rare(counts, room // 2)
        progress(len(batch))
    return counts


def write_pretokens(counts: dict[bytes, int], path: Path) -> None:
    """Parquet with a column text: each pretoken as many times as it occurs, which as runs of equal values is little."""
    pretokens = list(counts)
    ends = np.cumsum(np.fromiter(counts.values(), np.int64, len(counts)))
    starts = np.append(0, ends)[:-1]
    schema = pa.schema([("text", pa.dictionary(pa.int32(), pa.large_binary()))])
    options = {"compression": "none", "dictionary_pagesize_limit": 2**30, "store_schema": False}
    with pq.ParquetWriter(path, schema, **options) as writer:
        for first in range(0, int(ends[-1]), ROWS):
            last = min(first + ROWS, int(ends[-1]))
            a, b = np.searchsorted(ends, first, side="right"), np.searchsorted(starts, last)
            times = np.minimum(ends[a:b], last) - np.maximum(starts[a:b], first)
            rows = numbers(np.repeat(np.arange(b - a, dtype=np.int32), times))
            column = pa.DictionaryArray.from_arrays(rows, _binary(pretokens[a:b]))
            writer.write_table(pa.table([column], schema=schema), row_group_size=ROWS)


def _forget_rare(counts: dict[bytes, int], room: int) -> int:
    """Leaves the most frequent that fit into ``room``, of those equally frequent all or none; the bytes they take."""
    sizes = np.fromiter(map(len, counts), np.int64, len(counts)) + BESIDE
    times = np.fromiter(counts.values(), np.int64, len(counts))
    order = np.argsort(-times, kind="stable")
    most = times[order[np.searchsorted(np.cumsum(sizes[order]), room, side="right")]]  # of what does not fit
    for pretoken in [pretoken for pretoken, count in counts.items() if count <= most]:
        del counts[pretoken]
    return int(sizes[times > most].sum())


def _parts(batch: pa.Table) -> Iterator[pa.Table]:
    """Rows of about PART bytes: Python's objects for their pretokens are many times as large."""
    rows = max(1, PART * len(batch) // max(1, batch.nbytes))
    for first in range(0, len(batch), rows):
        yield batch.slice(first, rows)


def _joined(texts: pa.ChunkedArray) -> bytes:
    array = texts.combine_chunks().cast(pa.large_binary())
    whole = pa.LargeListArray.from_arrays(numbers(np.array([0, len(array)])), array)
    return pc.binary_join(whole, _binary([BETWEEN])[0])[0].as_py()


def _binary(values: list[bytes]) -> pa.Array:
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(pa.large_binary(), len(values), buffers)
