"""Lines of a possibly compressed file, in bounded memory, whatever the bytes are."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

LINE_LIMIT = 16 * 2**20  # bytes
CHUNK = 2**20
# `zstd --long=31` is the widest window the command line makes; the decoder reserves only what a frame names.
WINDOW_LIMIT = 2**31
EXCERPT = 120

COMPRESSED = (".gz", ".zst")
BROKEN = "truncated or corrupt compressed stream"


class Line(NamedTuple):
    """``number`` counts from 1. ``problem`` is None, or why ``data`` holds only an excerpt."""

    number: int
    data: bytes
    problem: str | None


class Block(NamedTuple):
    """Whole lines, the first of which is ``number``, or one line that is no good and its ``problem``.

    ``position``: bytes of the file, compressed as it is, that had been read by then.
    """

    number: int
    data: bytes
    problem: str | None
    position: int


def lines(path: Path, limit: int = LINE_LIMIT) -> Iterator[Line]:
    """Every line of ``path`` without its newline; blank lines are skipped.

    A line longer than ``limit`` bytes and the place where a compressed stream breaks off come with a
    ``problem``; the lines around them come whole.
    """
    for block in blocks(path, CHUNK, limit):
        yield from split(block, limit)


def split(block: Block, limit: int = LINE_LIMIT) -> Iterator[Line]:
    """The lines of a block, as `lines` gives them."""
    if block.problem:
        yield Line(block.number, block.data, block.problem)
        return
    for number, data in enumerate(block.data.split(b"\n"), block.number):
        if len(data) > limit:
            yield Line(number, data[:EXCERPT], "line too long")
        elif data.strip():
            yield Line(number, data, None)


def blocks(path: Path, size: int, limit: int = LINE_LIMIT) -> Iterator[Block]:
    """The lines of ``path`` in blocks of at least ``size`` bytes, but for the last."""
    number, whole, held, pending, dropped = 1, [], 0, b"", False
    chunk, position = b"", 0
    for chunk, position in _chunks(path):
        if chunk is None:
            break
        if dropped:  # within a line that is too long, of which pending is the beginning
            _, newline, chunk = chunk.partition(b"\n")
            if not newline:
                continue
            yield Block(number, pending, "line too long", position)
            number, pending, dropped = number + 1, b"", False
        head, newline, tail = chunk.rpartition(b"\n")
        if newline:
            whole += [pending, head, newline]
            held += len(pending) + len(head) + 1
            pending = tail
        else:
            pending += tail
        dropped = len(pending) > limit
        if held and (held >= size or dropped):
            data = b"".join(whole)
            yield Block(number, data, None, position)
            number, whole, held = number + data.count(b"\n"), [], 0
        if dropped:
            pending = pending[:EXCERPT]
    if dropped:
        yield Block(number, pending, "line too long", position)
    elif whole or pending:
        yield Block(number, data := b"".join([*whole, pending]), None, position)
        number += data.count(b"\n")
    if chunk is None:
        yield Block(number, b"", BROKEN, position)


def whole(path: Path, limit: int = LINE_LIMIT) -> tuple[bytes, str | None]:
    """All bytes of ``path``, decompressed, and None; or its beginning and what is wrong with it."""
    parts, size = [], 0
    for chunk, _ in _chunks(path):
        if chunk is None:
            return b"".join(parts), BROKEN
        parts.append(chunk)
        size += len(chunk)
        if size > limit:
            return b"".join(parts), "text too long"
    return b"".join(parts), None


def _chunks(path: Path) -> Iterator[tuple[bytes | None, int]]:
    """Decompressed pieces of at most CHUNK bytes, each with how far the file has been read; a last None where the
    stream is broken."""
    done, size = 0, path.stat().st_size
    try:
        with _opened(path) as (stream, raw):
            while chunk := stream.read(CHUNK):
                done += len(chunk)
                yield chunk, raw.tell()
        if path.suffix.lower() == ".zst" and not _zstd_complete(path):
            yield None, size
    except _broken():
        yield _rest(path, done), size
        yield None, size


def _rest(path: Path, done: int) -> bytes:
    """What can still be decoded behind ``done`` bytes: a read that fails discards what it had."""
    rest = bytearray()
    with suppress(*_broken()), _opened(path) as (stream, _):
        while done > 0:
            done -= len(stream.read(min(done, CHUNK)))
        while byte := stream.read(1):
            rest += byte
    return bytes(rest)


def _broken() -> tuple[type[Exception], ...]:
    from zstandard import ZstdError

    return ZstdError, EOFError, gzip.BadGzipFile, zlib.error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The decompressed stream, and the file below it."""
    suffix = path.suffix.lower()
    with path.open("rb") as raw:
        if suffix == ".gz":
            with gzip.open(raw, "rb") as stream:
                yield stream, raw
        elif suffix == ".zst":
            from zstandard import ZstdDecompressor

            yield ZstdDecompressor(max_window_size=WINDOW_LIMIT).stream_reader(raw, read_across_frames=True), raw
        else:
            yield raw, raw


def _zstd_complete(path: Path) -> bool:
    """Whether every frame reaches its last block (RFC 8878, section 3.1.1).

    The stream reader ends in silence where a file was cut off, so the block headers are walked here;
    blocks hold up to 128 KiB, so this reads next to nothing.
    """
    import zstandard

    size = path.stat().st_size
    with path.open("rb") as f:
        while head := f.read(18):  # the longest frame header
            start = f.tell() - len(head)
            if len(head) >= 8 and head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F:  # skippable
                f.seek(start + 8 + int.from_bytes(head[4:8], "little"))
                continue
            try:
                frame = zstandard.get_frame_parameters(head)
            except zstandard.ZstdError:
                return False
            f.seek(start + zstandard.frame_header_size(head))
            last = False
            while not last:
                header = f.read(3)
                if len(header) < 3:
                    return False
                bits = int.from_bytes(header, "little")
                last = bool(bits & 1)
                run_length = (bits >> 1) & 3 == 1
                f.seek(1 if run_length else bits >> 3, 1)
            f.seek(4 if frame.has_checksum else 0, 1)
            if f.tell() > size:
                return False
    return True
