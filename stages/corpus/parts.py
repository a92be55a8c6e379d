"""What the rules say of a corpus, kept on disk a part at a time.

A part is a row group of the documents. Nothing about one depends on another: they are judged in threads, in any order,
and a run that was killed goes on with those that are not there yet.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.corpus.aside import aside
from stages.corpus.documents import SCHEMA
from stages.corpus.judging import Judge, judge


class Part(NamedTuple):
    """A folder with kept.arrow, gone.arrow and figures.npz: see `Judged`."""

    folder: Path

    def kept(self) -> pa.Table:
        """Read as it is looked at."""
        return _read(self.folder / "kept.arrow")

    def gone(self) -> pa.Table:
        """Read as it is looked at."""
        return _read(self.folder / "gone.arrow")

    def figures(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / "figures.npz", allow_pickle=False) as found:
            return dict(found)


def sizes(documents: Path) -> list[int]:
    """Bytes of text in each part of the Parquet file ``documents``."""
    metadata, column = pq.read_metadata(documents), SCHEMA.names.index("text")
    groups = (metadata.row_group(k) for k in range(metadata.num_row_groups))
    return [group.column(column).total_uncompressed_size for group in groups]


def path(folder: Path, number: int) -> Path:
    """Where part ``number`` is, or will be."""
    return folder / f"{number:06}"


def judge_part(documents: Path, number: int, by: Judge, folder: Path) -> Part:
    """Part ``number`` of the Parquet file ``documents``, made if it is not in ``folder``."""
    target = path(folder, number)
    if not target.exists():
        with pq.ParquetFile(documents) as file:
            judged = judge(file.read_row_group(number, use_threads=False), by)
        with aside(target) as written:
            _write(written / "kept.arrow", judged.kept)
            _write(written / "gone.arrow", judged.gone)
            np.savez(written / "figures.npz", **judged.figures)
    return Part(target)


def judge_parts(
    documents: Path, numbers: Sequence[int], by: Judge, folder: Path, progress: Callable[[int], None] = lambda n: None
) -> list[Part]:
    """The parts of these ``numbers``. ``progress`` is called with the number of each that was not there."""
    parts, missing = [], [not path(folder, number).exists() for number in numbers]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        try:
            made = pool.map(lambda number: judge_part(documents, number, by, folder), numbers)
            for part, number, new in zip(made, numbers, missing, strict=True):
                parts.append(part)
                if new:
                    progress(number)
        finally:
            pool.shutdown(cancel_futures=True)
    return parts


def _write(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as f, pa.ipc.new_file(f, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def _read(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as f:
        return pa.ipc.open_file(f).read_all()
