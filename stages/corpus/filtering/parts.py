"""Judge a corpus in parts and keep the results on disk, so that a killed run resumes at the next part.

A part is a row group of the documents. Parts are independent: threads judge them in any order.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.corpus.filtering.applying import Judge, judge
from stages.corpus.reading.aside import aside, intact
from stages.corpus.reading.tables import SCHEMA
from stages.corpus.text.arrays import read_arrow, write_arrow


class Part(NamedTuple):
    """A judged part on disk: a folder with kept.arrow, dropped.arrow and figures.npz, as `Judged`.

    Tables are mapped into memory.
    """

    folder: Path

    def kept(self) -> pa.Table:
        return read_arrow(self.folder / "kept.arrow")

    def dropped(self) -> pa.Table:
        return read_arrow(self.folder / "dropped.arrow")

    def figures(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / "figures.npz", allow_pickle=False) as arrays:
            return dict(arrays)


def sizes(documents: Path) -> list[int]:
    """Return the bytes of text in each part of the Parquet file ``documents``."""
    metadata, column = pq.read_metadata(documents), SCHEMA.names.index("text")
    groups = (metadata.row_group(k) for k in range(metadata.num_row_groups))
    return [group.column(column).total_uncompressed_size for group in groups]


def path(folder: Path, number: int) -> Path:
    """Return the folder of part ``number``."""
    return folder / f"{number:06}"


def judge_part(documents: Path, number: int, by: Judge, folder: Path) -> Part:
    """Return part ``number`` of the Parquet file ``documents``; judge it if ``folder`` has no intact copy."""
    target = path(folder, number)
    if not intact(target):
        with pq.ParquetFile(documents) as file:
            judged = judge(file.read_row_group(number, use_threads=False), by)
        with aside(target) as written:
            write_arrow(written / "kept.arrow", judged.kept)
            write_arrow(written / "dropped.arrow", judged.dropped)
            figures: dict[str, Any] = judged.figures
            np.savez(written / "figures.npz", **figures)
    return Part(target)


def judge_parts(
    documents: Path, numbers: Sequence[int], by: Judge, folder: Path, progress: Callable[[int], None] = lambda n: None
) -> list[Part]:
    """Judge the parts ``numbers`` of the Parquet file ``documents`` in threads.

    Args:
        folder: of all parts; those already in it are not judged again.
        progress: called with the number of each part that was judged.
    """
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
