"""Count the pretokens of a corpus, which GPT-2's pattern splits texts into, in bounded memory.

Merges happen inside pretokens, so their counts are all that a vocabulary is learned from. When too many different ones
are in memory, the rarest are forgotten, again and again (lossy counting: Manku and Motwani 2002). The frequent ones
stay; the count of a rare one is a little too low.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.contract.process.quiet import quietly
from stages.corpus.reading.batches import batches
from stages.corpus.text.arrays import binaries, numbers

ROOM = 12 * 2**20  # bytes of different pretokens, and OVERHEAD more for each; merges of so many take half a gigabyte
OVERHEAD = 4
BETWEEN = b"\xff"  # separates documents: no UTF-8 text has it
PART = 2**21  # bytes of text that are counted at a time
ROWS = 2**20  # of Parquet in a row group


def count_pretokens(
    documents: Path | pa.Table, room: int = ROOM, progress: Callable[[int], None] = lambda n: None
) -> dict[bytes, int]:
    """Count the pretokens in the column text, all of them if they fit into ``room`` (bytes)."""
    from gigatoken.gigatoken_rs import pretokenized_counts

    counts: dict[bytes, int] = {}
    held = 0
    for batch in batches(documents, ["text"]):
        for part in _parts(batch):
            with quietly():
                of_part = pretokenized_counts(_joined(part["text"]), BETWEEN)
            for pretoken, count in of_part:
                if pretoken in counts:
                    counts[pretoken] += count
                else:
                    counts[pretoken] = count
                    held += len(pretoken) + OVERHEAD
            if held > room:
                held = _forget_rare(counts, room // 2)
        progress(len(batch))
    return counts


def write_pretokens(counts: dict[bytes, int], path: Path) -> None:
    """Write each pretoken as many times as it occurs to Parquet, column text; runs of equal values take little room."""
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
            column = pa.DictionaryArray.from_arrays(rows, binaries(pretokens[a:b]))
            writer.write_table(pa.table([column], schema=schema), row_group_size=ROWS)


def _forget_rare(counts: dict[bytes, int], room: int) -> int:
    """Keep the most frequent pretokens that fit into ``room`` and return their bytes; ties stay or go together."""
    sizes = np.fromiter(map(len, counts), np.int64, len(counts)) + OVERHEAD
    times = np.fromiter(counts.values(), np.int64, len(counts))
    order = np.argsort(-times, kind="stable")
    most = times[order[np.searchsorted(np.cumsum(sizes[order]), room, side="right")]]  # of those that do not fit
    for pretoken in [pretoken for pretoken, count in counts.items() if count <= most]:
        del counts[pretoken]
    return int(sizes[times > most].sum())


def _parts(batch: pa.Table) -> Iterator[pa.Table]:
    """Yield slices of about PART bytes: the Python objects of their pretokens are many times as large."""
    rows = max(1, PART * len(batch) // max(1, batch.nbytes))
    for first in range(0, len(batch), rows):
        yield batch.slice(first, rows)


def _joined(texts: pa.ChunkedArray) -> bytes:
    array = texts.combine_chunks().cast(pa.large_binary())
    whole = pa.LargeListArray.from_arrays(numbers(np.array([0, len(array)])), array)
    return pc.binary_join(whole, binaries([BETWEEN])[0])[0].as_py()
