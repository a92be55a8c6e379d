"""A corpus as shards on disk, made in threads: of each its texts, ids, hashes and min-hash signatures.

A shard is written aside, synced and renamed, so a run that was killed goes on at the next one. Where shards begin and
end follows from the files and the memory, and nothing that is made of all of them depends on it.
"""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from stages.contract.params import Dedup
from stages.corpus.arrays import join, numbers
from stages.corpus.aside import aside
from stages.corpus.documents import EMPTY, Piece, documents_of, pieces
from stages.corpus.duplicates import band_keys, sign
from stages.corpus.paragraphs import hash_paragraphs
from stages.corpus.records import Rejected
from stages.corpus.words import Texts, texts

LARGEST = 2**24  # bytes of text in a shard, about
# What a shard's text costs at most while it is made: read, parsed, sorted, hashed.
COPIES = 8


class Unit(NamedTuple):
    """Files that are cut into shards together, in ``folder``: a large one, or a run of small ones."""

    files: list[tuple[Path, str]]
    size: int  # bytes on disk
    folder: Path

    @property
    def made(self) -> Path:
        """A file that says how many shards there are, once all of them are there."""
        return self.folder / "shards"


class Shard(NamedTuple):
    """A folder with text.npy, index.arrow, keys.npy, signatures.npy, paragraphs.npy and rejected.jsonl.

    text.npy: uint8, the documents back to back. index.arrow: see `index_table`. keys.npy: uint64 (bands, documents).
    signatures.npy: uint32 (documents, permutations). paragraphs.npy: uint64, their hashes, see `hash_paragraphs`.
    """

    folder: Path

    def index(self) -> pa.Table:
        """Read as it is looked at."""
        with pa.memory_map(str(self.folder / "index.arrow")) as f:
            return pa.ipc.open_file(f).read_all()

    def array(self, name: str) -> np.ndarray:
        """A read-only memory map."""
        return np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    def rejected(self) -> Iterator[Rejected]:
        with (self.folder / "rejected.jsonl").open("rb") as f:
            yield from (Rejected(**orjson.loads(line)) for line in f)


def units(files: list[tuple[Path, str]], memory: int, folder: Path) -> list[Unit]:
    """The files in order, small ones together up to the size of a shard; ``folder`` is where shards are kept."""
    found: list[Unit] = []
    for path, name in files:
        length = path.stat().st_size
        if found and found[-1].size + length <= shard_bytes(memory):
            found[-1] = found[-1]._replace(files=[*found[-1].files, (path, name)], size=found[-1].size + length)
        else:
            found.append(Unit([(path, name)], length, folder / f"{len(found):06}"))
    return found


def shard_bytes(memory: int) -> int:
    """Of text in a shard, when ``memory`` bytes may be taken."""
    return min(LARGEST, max(2**18, memory // 64))


def make_shards(
    units: list[Unit], params: Dedup, memory: int, progress: Callable[[int], None] = lambda n: None
) -> list[Shard]:
    """The shards of ``units``, in order; those that are there already are not made again.

    Args:
        memory: bytes; it decides how large shards are and how many are made at once.
        progress: called with bytes of files, compressed as they are, of the units that were not all there.
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


def write_rejected(path: Path, shards: list[Shard]) -> dict[str, int]:
    """JSON lines {file, line, reason, excerpt}, in order of file and line; how many there are of each reason."""
    reasons = Counter()
    with path.open("wb") as out:
        for shard in shards:
            reasons.update(entry.reason for entry in shard.rejected())
            out.write((shard.folder / "rejected.jsonl").read_bytes())
    return dict(sorted(reasons.items()))


def _unit_shards(
    unit: Unit,
    params: Dedup,
    size: int,
    workers: ThreadPoolExecutor,
    room: threading.Semaphore,
    stop: threading.Event,
    step: Callable[[int], None],
) -> list[Shard]:
    """Reads the files of ``unit`` and has ``workers`` make its shards, while there is room for one more."""
    if unit.made.exists():
        return [Shard(unit.folder / f"{k:06}") for k in range(int(unit.made.read_text()))]

    def done(job: Future) -> None:
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
            if not (target := unit.folder / f"{k:06}").exists():
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
        written = unit.made.with_suffix(".tmp")
        written.write_text(str(k))
        written.rename(unit.made)
    return [Shard(unit.folder / f"{j:06}") for j in range(k)]


class _Group(NamedTuple):
    """What one shard is made of; ``read``: bytes of the unit's files that had been read by then."""

    pieces: list[Piece]
    read: int


def _groups(unit: Unit, size: int) -> Iterator[_Group]:
    held, total, before = [], 0, 0
    for path, name in unit.files:
        for piece in pieces(path, name, size):
            held.append(piece)
            total += piece.size
            if total >= size:
                yield _Group(held, before + piece.position)
                held, total = [], 0
        before += path.stat().st_size
    yield _Group(held, before)


def _make(group: list[Piece], params: Dedup, target: Path) -> None:
    tables, rejected = [EMPTY], []
    while group:
        table, problems = documents_of(group.pop(0))
        tables.append(table)
        rejected += problems
    table = pa.concat_tables(tables)
    # In order of id, what is written in that order later on is read in order.
    table = table.take(pc.sort_indices(table["id"]))
    documents = texts(table["text"])
    signatures, wordless = sign(documents, params.ngram, params.permutations)
    paragraphs, counts, beside = np.zeros(0, np.uint64), np.zeros(len(table), np.int32), np.ones(len(table), bool)
    if params.paragraphs:
        paragraphs, counts, beside = hash_paragraphs(documents, params.paragraphs)
    sources, sizes = join(table["source"]).dictionary_encode(), np.diff(documents.offsets)
    index = index_table(table["id"], sources, text_hashes(documents), sizes, wordless, counts, beside)
    text = documents.data[documents.offsets[0] : documents.offsets[-1]]
    save(target, index, signatures, params.bands, text, paragraphs, rejected)


def index_table(ids, sources, hashes, sizes, wordless, paragraphs, beside) -> pa.Table:
    """What a shard's index.arrow holds of each document: id, source, the text's 128-bit hash, its bytes; no word at
    all; how many paragraphs are hashed; words beside them."""
    return pa.table(
        {
            "id": ids,
            "source": sources,
            "high": numbers(hashes[:, 0]),
            "low": numbers(hashes[:, 1]),
            "size": numbers(sizes),
            "wordless": numbers(wordless.view(np.uint8)),
            "paragraphs": numbers(paragraphs),
            "beside": numbers(beside.view(np.uint8)),
        }
    )


def save(
    target: Path,
    index: pa.Table,
    signatures: np.ndarray,
    bands: int,
    text: np.ndarray,
    paragraphs: np.ndarray,
    rejected: list[Rejected],
) -> Shard:
    """Writes a shard, all of it or nothing."""
    with aside(target) as folder:
        np.save(folder / "text.npy", text)
        np.save(folder / "signatures.npy", signatures)
        np.save(folder / "keys.npy", band_keys(signatures, bands))
        np.save(folder / "paragraphs.npy", paragraphs)
        with pa.OSFile(str(folder / "index.arrow"), "wb") as f, pa.ipc.new_file(f, index.schema) as writer:
            writer.write_table(index.unify_dictionaries())
        with (folder / "rejected.jsonl").open("wb") as f:
            f.writelines(orjson.dumps(entry._asdict(), option=orjson.OPT_APPEND_NEWLINE) for entry in rejected)
    return Shard(target)


def text_hashes(documents: Texts) -> np.ndarray:
    """uint64 (documents, 2): xxh3's 128 bits of each text."""
    from xxhash import xxh3_128_digest

    data, bounds = memoryview(documents.data), documents.offsets.tolist()
    digests = b"".join([xxh3_128_digest(data[a:b]) for a, b in pairwise(bounds)])
    return np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2)
