"""Write the survivors of deduplication and the dropped documents as Parquet."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.contract.params import Dedup
from stages.corpus.dedup.collection import ROWS, Collection
from stages.corpus.dedup.paragraphs import cut_paragraphs
from stages.corpus.dedup.signatures import similarity
from stages.corpus.reading.tables import SCHEMA
from stages.corpus.text.arrays import numbers, strings
from stages.corpus.text.words import column

ROW_GROUP = 2**23  # bytes of text
KINDS = ("near", "exact", "paragraphs")
NEAR, EXACT, PARAGRAPHS = range(3)


def write_survivors(
    path: Path,
    collection: Collection,
    rows: np.ndarray,
    again: np.ndarray,
    params: Dedup,
    room: int,
    progress: Callable[[int], None],
) -> np.ndarray:
    """Write documents by SCHEMA, in row groups of about ROW_GROUP bytes.

    Args:
        rows: of the documents, in order of id.
        again: bool, of all their paragraphs: which are cut out.
        room: bytes; the shards are read once for every sixteenth of it.
        progress: called with bytes of text.

    Returns:
        int64 (rows,): bytes of each text as written.
    """
    sizes, written = collection.sizes[rows], [np.zeros(0, np.int64)]
    counts = np.append(0, np.cumsum(collection.paragraphs[rows], dtype=np.int64))
    bounds = _row_groups(sizes)
    ends = np.append(0, np.cumsum(sizes))[bounds]
    with pq.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=["source"]) as writer:
        start = 0
        while start < len(bounds) - 1:
            stop = max(start + 1, int(np.searchsorted(ends, ends[start] + room // 16, side="right")) - 1)
            first, last = bounds[start], bounds[stop]
            part, documents = rows[first:last], collection.texts(rows[first:last])
            if params.paragraphs:
                mine = again[counts[first] : counts[last]]
                documents = cut_paragraphs(documents, params.paragraphs, collection.paragraphs[part], mine)
            written.append(np.diff(documents.offsets))
            sources = collection.sources.take(numbers(part)).cast(pa.large_string())
            table = pa.table([collection.ids.take(numbers(part)), column(documents), sources], schema=SCHEMA)
            for group in range(start, stop):
                at = int(bounds[group] - first)
                writer.write_table(table.slice(at, int(bounds[group + 1] - bounds[group])))
                progress(int(ends[group + 1] - ends[group]))
            start = stop
    return np.concatenate(written)


def write_dropped(path: Path, collection: Collection, rows: np.ndarray, survivor: np.ndarray, kind: np.ndarray) -> None:
    """Write the dropped documents ``rows`` with their survivors, clusters, kinds and similarities.

    Args:
        survivor, kind: int64, of all documents; a kind is an index of KINDS.
    """
    schema = pa.schema(
        [
            *((name, pa.large_string()) for name in ("id", "source", "kept_id")),
            ("cluster", pa.int64()),
            ("kind", pa.string()),
            ("similarity", pa.float64()),
        ]
    )
    kinds = strings(KINDS)
    clusters = np.unique(survivor[rows], return_inverse=True)[1].astype(np.int64)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            kept = survivor[part]
            alike = similarity(collection.signatures(part), collection.signatures(kept))
            alike[kind[part] == EXACT] = 1.0
            columns = [
                collection.ids.take(numbers(part)),
                collection.sources.take(numbers(part)),
                collection.ids.take(numbers(kept)),
                numbers(clusters[start : start + ROWS]),
                kinds.take(numbers(kind[part])),
                numbers(np.round(alike, 6)),
            ]
            writer.write_table(pa.table(columns, schema.names).cast(schema))


def _row_groups(sizes: np.ndarray) -> np.ndarray:
    """Return the bounds of runs of documents of about ROW_GROUP bytes."""
    group = np.cumsum(sizes) // ROW_GROUP
    return np.unique([0, *(np.flatnonzero(np.diff(group)) + 1), len(sizes)])
