"""Hold all documents of a corpus in order of id: a few figures of each in memory, texts and signatures on disk."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.contract.errors import UserError
from stages.corpus.dedup.shards import Shard
from stages.corpus.reading.documents import unique_ids
from stages.corpus.text.arrays import give_back, join, numbers, values
from stages.corpus.text.kernels import kernel
from stages.corpus.text.words import Texts

ROWS = 2**13  # documents that are read and written at a time
# Bytes of the interpreter and the libraries; and, while duplicates are searched, of a document besides its id, and of
# each of its paragraphs.
PROGRAM, DOCUMENT, PARAGRAPH = 320 * 2**20, 160, 32


class Collection(NamedTuple):
    """Documents in order of id, the ``known`` ones of a kept corpus in front.

    ``ids`` large_string; ``sources`` dictionary of strings; ``hashes`` uint64 (documents, 2); ``sizes`` int64 (bytes);
    ``wordless`` bool; ``paragraphs`` int32 (how many are hashed) and ``others`` bool: see `hash_paragraphs`; ``place``:
    a document's row in ``shards``, whose bounds are ``starts``; ``ends`` and ``paragraph_ends``: where its text and its
    paragraphs end in those of its shard; ``renamed``: ids that were changed to be unique.
    """

    shards: list[Shard]
    starts: np.ndarray
    place: np.ndarray
    ids: pa.Array
    sources: pa.DictionaryArray
    hashes: np.ndarray
    sizes: np.ndarray
    ends: np.ndarray
    wordless: np.ndarray
    paragraphs: np.ndarray
    paragraph_ends: np.ndarray
    others: np.ndarray
    known: int
    renamed: int

    def keys(self, band: int) -> np.ndarray:
        """Return the keys of a band, uint64 (documents,): see `band_keys`."""
        return np.concatenate([shard.array("keys")[band] for shard in self.shards])[self.place]

    def signatures(self, rows: np.ndarray) -> np.ndarray:
        """Return the signatures of ``rows``, uint32 (rows, permutations)."""
        out = np.empty((len(rows), self.shards[0].array("signatures").shape[1]), np.uint32)
        for shard, at, inside in self._by_shard(rows):
            out[at] = shard.array("signatures")[inside]
        return out

    def texts(self, rows: np.ndarray) -> Texts:
        offsets = np.append(0, np.cumsum(self.sizes[rows]))
        return Texts(self._gather("text", np.uint8, rows, offsets, self.ends), offsets)

    def paragraph_hashes(self, rows: np.ndarray) -> np.ndarray:
        """Return the hashes of the paragraphs of ``rows``, uint64, one document after another."""
        offsets = np.append(0, np.cumsum(self.paragraphs[rows], dtype=np.int64))
        return self._gather("paragraphs", np.uint64, rows, offsets, self.paragraph_ends)

    def numbered_hashes(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the hashes of the paragraphs of ``rows`` in the order of the shards, ROWS documents at a time.

        With each batch come their numbers in the order of ``rows`` (int64).
        """
        counts = self.paragraphs[rows].astype(np.int64)
        first = np.cumsum(counts) - counts
        by_place = np.argsort(self.place[rows])
        for start in range(0, max(1, len(rows)), ROWS):
            at = by_place[start : start + ROWS]
            inside = np.arange(counts[at].sum()) - np.repeat(np.cumsum(counts[at]) - counts[at], counts[at])
            yield self.paragraph_hashes(rows[at]), np.repeat(first[at], counts[at]) + inside

    def _gather(
        self, name: str, kind: type[np.unsignedinteger], rows: np.ndarray, offsets: np.ndarray, ends: np.ndarray
    ) -> np.ndarray:
        out = np.empty(offsets[-1], kind)
        for shard, at, _ in self._by_shard(rows):
            _copy(shard.array(name), ends[rows[at]], offsets, at, out)
        return out

    def _by_shard(self, rows: np.ndarray) -> Iterator[tuple[Shard, np.ndarray, np.ndarray]]:
        """Yield each shard with some of ``rows``, which of them, and their places in the shard."""
        places = self.place[rows]
        order = np.argsort(places, kind="stable")
        cuts = np.searchsorted(places[order], self.starts)
        for k in np.flatnonzero(np.diff(cuts)):
            at = order[cuts[k] : cuts[k + 1]]
            yield self.shards[k], at, places[at] - self.starts[k]


@kernel
def _copy(source: np.ndarray, ends: np.ndarray, offsets: np.ndarray, at: np.ndarray, out: np.ndarray) -> None:
    for k in range(at.shape[0]):
        start, size = offsets[at[k]], offsets[at[k] + 1] - offsets[at[k]]
        first = ends[k] - size
        for j in range(size):
            out[start + j] = source[first + j]


def room_in(gib: float) -> int:
    """Return the bytes for data if the process may take ``gib`` GiB."""
    return int(gib * 2**30) - PROGRAM


def collect(shards: list[Shard], known: list[Shard], room: int) -> Collection:
    """Collect the documents of ``shards``, and of the ``known`` shards of a kept corpus.

    Raises:
        UserError: the figures of all documents take more than three quarters of ``room`` (bytes).
    """
    give_back()
    shards = [*known, *shards]
    tables = [shard.index() for shard in shards]
    count = sum(map(len, tables))
    paragraphs = sum(pc.sum(part["paragraphs"]).as_py() or 0 for part in tables)
    needed = DOCUMENT * count + PARAGRAPH * paragraphs + sum(3 * part["id"].nbytes for part in tables)
    if needed > 0.75 * room:
        least = math.ceil(100 * (needed / 0.75 + PROGRAM) / 2**30) / 100
        raise UserError(f"{count:,} documents are too many for dedup.memory_gib; the least for them is {least:.2f}.")
    late = np.repeat(np.arange(len(shards)) >= len(known), [len(table) for table in tables]).astype(np.uint8)
    table = pa.concat_tables(tables).unify_dictionaries()
    ties = [table["high"], table["low"], table["source"].cast(pa.string())]
    if known:
        ties = [pa.chunked_array([numbers(late)]), *ties]
    ids, place, renamed = unique_ids(table["id"], ties)
    if known:
        first = np.argsort(late[place], kind="stable")
        ids, place = ids.take(numbers(first)), place[first]
    rows = numbers(place)
    ends, paragraph_ends = (
        np.concatenate([np.cumsum(values(join(part[name])), dtype=np.int64) for part in tables])[place]
        for name in ("size", "paragraphs")
    )
    collection = Collection(
        shards=shards,
        starts=np.append(0, np.cumsum([len(table) for table in tables])),
        place=place,
        ids=ids,
        sources=join(table["source"].take(rows)),
        hashes=np.stack([values(join(table[name]))[place] for name in ("high", "low")], axis=1),
        sizes=values(join(table["size"]))[place],
        ends=ends,
        wordless=values(join(table["wordless"]))[place].astype(bool),
        paragraphs=values(join(table["paragraphs"]))[place],
        paragraph_ends=paragraph_ends,
        others=values(join(table["others"]))[place].astype(bool),
        known=int((late == 0).sum()),
        renamed=renamed,
    )
    del table, ties, tables
    give_back()
    return collection
