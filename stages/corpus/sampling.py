"""How often documents are taken: more of some domains and less of others, generated text less than what was written."""

import hashlib
from fnmatch import fnmatchcase

import numpy as np
import pyarrow as pa

from stages.contract.errors import UserError


def sampled(table: pa.Table, weights: dict[str, float]) -> tuple[pa.Table, dict[str, dict]]:
    """The documents (text, source) of each source as often as ``weights`` says by pattern, those of others once; copies
    stand behind each other. And pattern -> its weight, the documents there are, and how many were taken.

    Raises:
        UserError: a pattern matches no source, or a source has two weights.
    """
    if not weights:
        return table, {}
    sources = np.array(table["source"].to_pylist(), object)
    names = sorted(set(sources))
    matches = {pattern: [name for name in names if fnmatchcase(name, pattern)] for pattern in sorted(weights)}
    often, mixture, owner = np.ones(len(sources), np.int64), {}, {}
    for pattern, found in matches.items():
        if not found:
            raise UserError(f"filter.weights: {pattern!r} matches no source. There are: {', '.join(names)}.")
        if twice := [name for name in found if name in owner]:
            raise UserError(
                f"filter.weights: source {twice[0]} matches {owner[twice[0]]!r} and {pattern!r}; it can have one."
            )
        owner |= dict.fromkeys(found, pattern)
        rows = np.flatnonzero(np.isin(sources, found))
        often[rows] = copies([text.encode() for text in table["text"].take(rows).to_pylist()], weights[pattern])
        taken = int(often[rows].sum())
        mixture[pattern] = {"weight": weights[pattern], "documents": len(rows), "taken": taken}
    if not often.any():
        raise UserError("filter.weights: no document is taken at all. Raise a weight in params.yaml.")
    return table.take(np.repeat(np.arange(len(sources)), often)), mixture


def copies(records: list[bytes], weight: float) -> list[int]:
    """How often to take each of n ``records``: weight * n in all, rounded, and none more than once more than another.

    Which ones are taken once more is decided by a hash of their content: their order does not matter, and a larger
    weight takes what a smaller one took.
    """
    every, more = divmod(round(weight * len(records)), max(1, len(records)))
    ranked = sorted(range(len(records)), key=lambda i: hashlib.sha256(records[i]).digest())
    chosen = set(ranked[:more])
    return [every + (i in chosen) for i in range(len(records))]
