"""Sample documents by source: more of some domains, less of others, such as generated text."""

import hashlib
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.contract.errors import UserError
from stages.corpus.reading.tables import SCHEMA
from stages.corpus.text.arrays import integers, join, numbers


def write_sampled(
    path: Path, parts: Callable[[], Iterable[pa.Table]], weights: dict[str, float]
) -> tuple[np.ndarray, dict[str, dict[str, float]]]:
    """Write every document as often as `times` says, copies one after another, to Parquet by SCHEMA.

    Args:
        path: the file; each table of ``parts()`` becomes a row group.
        parts: yields the documents in tables.
        weights: by pattern of a source's name.

    Returns:
        int64 (documents,), bytes of each text; and the mixture, as `times`.
    """
    often, mixture = times(parts, weights)
    lengths = [np.zeros(0, np.int64)]
    done = 0
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for part in parts():
            lengths.append(integers(join(pc.binary_length(part["text"]))))
            mine = often[done : done + len(part)]
            done += len(part)
            if mine.any():
                once = (mine == 1).all()
                writer.write_table(part if once else part.take(numbers(np.repeat(np.arange(len(mine)), mine))))
    return np.concatenate(lengths), mixture


def times(
    parts: Callable[[], Iterable[pa.Table]], weights: dict[str, float]
) -> tuple[np.ndarray, dict[str, dict[str, float]]]:
    """Decide how often each document is taken: by the weight of its source's pattern, or once.

    Returns:
        int64 (documents,); and the mixture: pattern -> its weight, its documents, and how many are taken.

    Raises:
        UserError: a pattern matches no source, or a source has two weights.
    """
    owner = _owners(sorted({name for part in parts() for name in pc.unique(part["source"]).to_pylist()}), weights)
    digests: dict[str, list[bytes]] = {pattern: [] for pattern in weights}
    rows: dict[str, list[int]] = {}
    often, count = [np.zeros(0, np.int64)], 0
    for part in parts():
        often.append(np.ones(len(part), np.int64))
        for k, source in enumerate(part["source"].to_pylist() if weights else []):
            if source in owner:
                digests[owner[source]].append(hashlib.sha256(part["text"][k].as_buffer()).digest())
                rows.setdefault(owner[source], []).append(count + k)
        count += len(part)
    taken, mixture = np.concatenate(often), {}
    for pattern in sorted(weights):
        chosen = copies(digests[pattern], weights[pattern])
        taken[rows[pattern]] = chosen
        mixture[pattern] = {"weight": weights[pattern], "documents": len(chosen), "taken": sum(chosen)}
    if not taken.any():
        raise UserError("filter.weights: no document is taken at all. Raise a weight in params.yaml.")
    return taken, mixture


def _owners(names: list[str], weights: dict[str, float]) -> dict[str, str]:
    """Return the pattern of each source that matches one."""
    owner: dict[str, str] = {}
    for pattern in sorted(weights):
        found = [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            raise UserError(f"filter.weights: {pattern!r} matches no source. There are: {', '.join(names)}.")
        if twice := [name for name in found if name in owner]:
            raise UserError(
                f"filter.weights: source {twice[0]} matches {owner[twice[0]]!r} and {pattern!r}; it can have one."
            )
        owner |= dict.fromkeys(found, pattern)
    return owner


def copies(digests: list[bytes], weight: float) -> list[int]:
    """Decide how often to take each of n records: weight * n in all, rounded; any two counts differ by at most one.

    The ``digests`` of their content decide which records are taken once more: their order does not matter, and a
    larger weight takes all that a smaller one took.
    """
    every, more = divmod(round(weight * len(digests)), max(1, len(digests)))
    chosen = set(sorted(range(len(digests)), key=digests.__getitem__)[:more])
    return [every + (i in chosen) for i in range(len(digests))]
