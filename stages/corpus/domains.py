"""How often documents are taken: more of some domains and less of others, generated text less than what was written."""

import hashlib
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.contract.errors import UserError
from stages.corpus.arrays import integers, join, numbers
from stages.corpus.documents import SCHEMA
from stages.corpus.sampling import copies


def write_sampled(
    path: Path, parts: Callable[[], Iterable[pa.Table]], weights: dict[str, float]
) -> tuple[np.ndarray, dict[str, dict]]:
    """Parquet by SCHEMA, a row group for each of the tables that ``parts()`` gives: every document as often as `times`
    says, copies behind each other. int64 (documents,): bytes of the text of each, and what `times` says of patterns.
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


def times(parts: Callable[[], Iterable[pa.Table]], weights: dict[str, float]) -> tuple[np.ndarray, dict[str, dict]]:
    """How often the documents of each source are taken: as ``weights`` says by pattern, those of other sources once.

    Args:
        parts: gives the documents (text, source), some at a time.

    Returns:
        int64 (documents,), and pattern -> its weight, the documents there are, and how many are taken.

    Raises:
        UserError: a pattern matches no source, or a source has two weights.
    """
    owner = _owners(sorted({name for part in parts() for name in pc.unique(part["source"]).to_pylist()}), weights)
    often, digests, rows = [np.zeros(0, np.int64)], {pattern: [] for pattern in weights}, {}
    count = 0
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
    """The pattern of each source that has one."""
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
