"""Cut a corpus into shards on disk, in threads: texts, ids, hashes and min-hash signatures.

A shard is written aside, synced and renamed, so a killed run resumes at the next one. The bounds of shards depend on
the files and the memory; the result of dedup does not depend on them.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.contract.files import atomic_write
from stages.contract.params import Dedup, Source
from stages.corpus.dedup.paragraphs import hash_paragraphs
from stages.corpus.dedup.signatures import band_keys, sign
from stages.corpus.reading.aside import aside, intact
from stages.corpus.reading.formats import format_of
from stages.corpus.reading.rejections import Rejections
from stages.corpus.reading.sources import source_files
from stages.corpus.reading.tables import EMPTY, Piece
from stages.corpus.text.arrays import join, numbers, read_arrow, write_arrow
from stages.corpus.text.words import Texts, texts

LARGEST = 2**24  # bytes of text in a shard, about
COPIES = 8  # bytes of memory for a byte of a shard's text while it is read, parsed, sorted and hashed, at most


class Unit(NamedTuple):
    """Files that are cut into shards together, in ``folder``: a large file, or a run of small ones."""

    files: list[tuple[Path, str]]
    size: int  # bytes on disk
    folder: Path
    fields: Mapping[str, str]  # of the Source

    @property
    def made(self) -> Path:
        """The file with the number of shards, written when all of them are complete."""
        return self.folder / "shards"


class Shard(NamedTuple):
    """A folder with text.npy, index.arrow, keys.npy, signatures.npy, paragraphs.npy and rejected.json.

    text.npy: uint8, the documents back to back. index.arrow: see `index_table`. keys.npy: uint64 (bands, documents).
    signatures.npy: uint32 (documents, permutations). paragraphs.npy: uint64 hashes, see `hash_paragraphs`.
    """

    folder: Path

    def index(self) -> pa.Table:  # type: ignore[override]  # nobody asks a shard for tuple.index
        """Return index.arrow as a memory map."""
        return read_arrow(self.folder / "index.arrow")

    def array(self, name: str) -> np.ndarray:
        """Return an array as a read-only memory map."""
        return np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    def rejected(self) -> Rejections:
        return Rejections.load(self.folder / "rejected.json")


def units(source: Source, memory: int, folder: Path) -> list[Unit]:
    """Group the files of ``source`` in order, small ones up to a shard's size; ``folder`` is that of all shards."""
    grouped: list[Unit] = []
    for path, name in source_files(source):
        length = path.stat().st_size
        if grouped and grouped[-1].size + length <= shard_bytes(memory):
            grouped[-1].files.append((path, name))
            grouped[-1] = grouped[-1]._replace(size=grouped[-1].size + length)
        else:
            grouped.append(Unit([(path, name)], length, folder / f"{len(grouped):06}", source.fields))
    return grouped


def shard_bytes(memory: int) -> int:
    """Return the bytes of text in a shard, about, if ``memory`` bytes are available."""
    return min(LARGEST, max(2**18, memory // 64))


def make_shards(
    units: list[Unit], params: Dedup, memory: int, progress: Callable[[int], None] = lambda n: None
) -> list[Shard]:
    """Make the shards of ``units`` that do not exist yet; return all, in order.

    Args:
        memory: bytes; it decides the size of shards and how many are made at once.
        progress: called with bytes of files (compressed, if they are) of incomplete units.
    """
    size, cores, lock = shard_bytes(memory), len(os.sched_getaffinity(0)), threading.Lock()
    at_once = max(1, min(cores + 2, memory // (COPIES * size)))
    room, stop = threading.Semaphore(at_once), threading.Event()

    def step(done: int) -> None:
        with lock:
            progress(done)

    with ThreadPoolExecutor(min(cores, at_once)) as workers, ThreadPoolExecutor(min(cores, at_once)) as readers:
        jobs = [readers.submit(_unit_shards, unit, params, size, workers, room, stop, step) for unit in units]
        try:
            return [shard for job in jobs for shard in job.result()]
        finally:
            stop.set()
            readers.shutdown(wait=False, cancel_futures=True)


def all_rejected(shards: list[Shard]) -> Rejections:
    """Return the rejected records of all ``shards``."""
    rejected = Rejections()
    for shard in shards:
        rejected.extend(shard.rejected())
    return rejected


def _unit_shards(
    unit: Unit,
    params: Dedup,
    size: int,
    workers: ThreadPoolExecutor,
    room: threading.Semaphore,
    stop: threading.Event,
    step: Callable[[int], None],
) -> list[Shard]:
    """Read the files of ``unit`` and let ``workers`` make its shards, while there is room for one more."""
    if (made := _made(unit)) is not None:
        return made

    def done(job: Future[None]) -> None:
        room.release()
        if job.exception():
            stop.set()

    unit.folder.mkdir(parents=True, exist_ok=True)
    jobs, groups, read = [], _groups(unit, size), 0
    for k in count():
        room.acquire()
        submitted = False
        try:
            group = None if stop.is_set() else next(groups, None)
            if group is None:
                break
            if not intact(target := unit.folder / f"{k:06}"):
                jobs.append(workers.submit(_make, group.pieces, params, target))
                jobs[-1].add_done_callback(done)
                submitted = True
        finally:
            if not submitted:
                room.release()
        step(group.read - read)
        read = group.read
    for job in jobs:
        job.result()
    if not stop.is_set():
        with atomic_write(unit.made) as part:
            part.write_text(str(k))
    return [Shard(unit.folder / f"{j:06}") for j in range(k)]


def _made(unit: Unit) -> list[Shard] | None:
    """Return the shards of ``unit`` if all of them are complete and intact."""
    count = unit.made.read_text() if unit.made.exists() else ""
    if not count.isdigit():
        return None
    shards = [Shard(unit.folder / f"{k:06}") for k in range(int(count))]
    return shards if all(intact(shard.folder) for shard in shards) else None


class _Group(NamedTuple):
    """The input of one shard; ``read``: bytes of the unit's files up to its end."""

    pieces: list[Piece]
    read: int


def _groups(unit: Unit, size: int) -> Iterator[_Group]:
    held, total, before = [], 0, 0
    for path, name in unit.files:
        for piece in format_of(name).pieces(path, name, size, unit.fields):
            held.append(piece)
            total += piece.memory
            if total >= size:
                yield _Group(held, before + piece.position)
                held, total = [], 0
        before += path.stat().st_size
    yield _Group(held, before)


def _make(group: list[Piece], params: Dedup, target: Path) -> None:
    tables, rejected = [EMPTY], Rejections()
    while group:
        table, problems = group.pop(0).documents()
        tables.append(table)
        rejected.extend(problems)
    table = pa.concat_tables(tables)
    # The outs are written in order of id, so a shard in that order is read sequentially.
    table = table.take(pc.sort_indices(table["id"]))
    documents = texts(table["text"])
    signatures, wordless = sign(documents, params.ngram, params.permutations)
    paragraphs, counts, others = np.zeros(0, np.uint64), np.zeros(len(table), np.int32), np.ones(len(table), bool)
    if params.paragraphs:
        paragraphs, counts, others = hash_paragraphs(documents, params.paragraphs)
    sources, sizes = join(table["source"]).dictionary_encode(), np.diff(documents.offsets)
    index = index_table(table["id"], sources, text_hashes(documents), sizes, wordless, counts, others)
    text = documents.data[documents.offsets[0] : documents.offsets[-1]]
    save_shard(target, index, signatures, params.bands, text, paragraphs, rejected)


def index_table(
    ids: pa.Array, sources: pa.DictionaryArray, hashes: np.ndarray, sizes: np.ndarray, wordless: np.ndarray,
    paragraphs: np.ndarray, others: np.ndarray,
) -> pa.Table:  # fmt: skip
    """Return the table of a shard's index.arrow.

    Args:
        hashes: uint64 (documents, 2), of the texts.
        sizes: int64 (documents,), bytes of the texts.
        wordless: bool (documents,), whether a document has no word.
        paragraphs, others: see `hash_paragraphs`.
    """
    return pa.table(
        {
            "id": ids,
            "source": sources,
            "high": numbers(hashes[:, 0]),
            "low": numbers(hashes[:, 1]),
            "size": numbers(sizes),
            "wordless": numbers(wordless.view(np.uint8)),
            "paragraphs": numbers(paragraphs),
            "others": numbers(others.view(np.uint8)),
        }
    )


def save_shard(
    target: Path,
    index: pa.Table,
    signatures: np.ndarray,
    bands: int,
    text: np.ndarray,
    paragraphs: np.ndarray,
    rejected: Rejections,
) -> Shard:
    """Write a shard, all of it or nothing; arguments as the files of `Shard`."""
    with aside(target) as folder:
        np.save(folder / "text.npy", text)
        np.save(folder / "signatures.npy", signatures)
        np.save(folder / "keys.npy", band_keys(signatures, bands))
        np.save(folder / "paragraphs.npy", paragraphs)
        write_arrow(folder / "index.arrow", index.unify_dictionaries())
        rejected.save(folder / "rejected.json")
    return Shard(target)


def text_hashes(documents: Texts) -> np.ndarray:
    """Hash each text by xxh3 to 128 bits, uint64 (documents, 2)."""
    from xxhash import xxh3_128_digest

    data, bounds = documents.data.data, documents.offsets.tolist()
    digests = b"".join([xxh3_128_digest(data[a:b]) for a, b in pairwise(bounds)])
    return np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2)
