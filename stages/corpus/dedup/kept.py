"""Write and read the index of a kept corpus: it finds duplicates of the corpus without its texts."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.contract.errors import UserError
from stages.contract.params import Dedup
from stages.corpus.dedup.collection import ROWS, Collection
from stages.corpus.dedup.shards import Shard, index_table, save_shard
from stages.corpus.reading.rejections import Rejections
from stages.corpus.text.arrays import numbers, slices, strings

SAME = ("ngram", "permutations", "paragraphs")  # parameters that must be those of the index


def write_index(path: Path, collection: Collection, rows: np.ndarray, again: np.ndarray, params: Dedup) -> None:
    """Write the index of the documents ``rows`` for `read_known`.

    Args:
        again: bool, of all their paragraphs: which are cut out.
    """
    schema = pa.schema(
        [
            ("id", pa.large_string()),
            ("hash", pa.binary(16)),
            ("signature", pa.binary(4 * params.permutations)),
            ("paragraphs", pa.large_binary()),
        ],
        {name: str(getattr(params, name)) for name in SAME},
    )
    ends = np.append(0, np.cumsum(collection.paragraphs[rows], dtype=np.int64))
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False, write_statistics=False) as writer:
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            stays = ~again[ends[start] : ends[start + len(part)]]
            kept = np.append(0, np.cumsum(stays))[ends[start : start + len(part) + 1] - ends[start]]
            columns = [
                collection.ids.take(numbers(part)),
                _fixed(collection.hashes[part], schema.field("hash").type),
                _fixed(collection.signatures(part), schema.field("signature").type),
                slices(collection.paragraph_hashes(part)[stays], 8 * kept),
            ]
            writer.write_table(pa.table(columns, schema=schema))


def read_known(params: Dedup, folder: Path) -> list[Shard]:
    """Read the kept corpus in dedup.against as shards without texts in ``folder``; none without an index.parquet.

    Raises:
        UserError: the file is no index, or was made with other parameters.
    """
    path = Path(params.against)
    if path.is_dir():
        others = sorted(other.name for other in path.glob("*.parquet") if other.name != "index.parquet")
        path /= "index.parquet"
        if others and not path.exists():
            raise UserError(
                f"dedup.against: {params.against} has {others[0]}, not index.parquet. Name the file itself."
            )
    if not path.exists():
        return []
    try:
        file = pq.ParquetFile(path)
        made = {name: int(file.schema_arrow.metadata[name.encode()]) for name in SAME}
    except (pa.ArrowException, OSError, TypeError, KeyError, ValueError) as e:
        raise UserError(f"{path}: not the index of a deduplicated corpus ({type(e).__name__}).") from None
    wanted = {name: getattr(params, name) for name in SAME}
    if made != wanted:
        raise UserError(f"{path} was made with {made}, and params.yaml has {wanted}; set `dedup` as it was then.")
    shutil.rmtree(folder, ignore_errors=True)
    with file:
        return [
            _known(batch, params, folder / f"{k:06}")
            for k, batch in enumerate(file.iter_batches(ROWS, use_threads=False))
        ]


def _known(batch: pa.RecordBatch, params: Dedup, target: Path) -> Shard:
    signatures = _rows(batch["signature"], np.uint32, params.permutations)
    _, offsets, data = batch["paragraphs"].buffers()
    bounds = np.frombuffer(offsets, np.int64)[batch["paragraphs"].offset :][: len(batch) + 1] // 8
    paragraphs = np.frombuffer(data, np.uint64)[bounds[0] : bounds[-1]] if data else np.zeros(0, np.uint64)
    index = index_table(
        batch["id"],
        strings([""] * len(batch)).dictionary_encode(),
        _rows(batch["hash"], np.uint64, 2),
        np.zeros(len(batch), np.int64),
        (signatures == 0xFFFFFFFF).all(axis=1),
        np.diff(bounds).astype(np.int32),
        np.ones(len(batch), bool),
    )
    return save_shard(target, index, signatures, params.bands, np.zeros(0, np.uint8), paragraphs, Rejections())


def _fixed(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def _rows(values: pa.Array, kind: type[np.unsignedinteger], width: int) -> np.ndarray:
    return np.frombuffer(values.buffers()[1], kind).reshape(-1, width)[values.offset :][: len(values)].copy()
