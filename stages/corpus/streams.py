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


def lines(path: Path, limit: int = LINE_LIMIT) -> Iterator[Line]:
    """Every line of ``path`` without its newline; blank lines are skipped.

    A line longer than ``limit`` bytes and the place where a compressed stream breaks off come with a
    ``problem``; the lines around them come whole.
    """
    number, pending, dropped, broken = 1, b"", False, False
    for chunk in _chunks(path):
        if chunk is None:
            broken = True
            break
        parts = (pending + chunk).split(b"\n")
        pending = parts.pop()
        for part in parts:
            if dropped or len(part) > limit:
                yield Line(number, part[:EXCERPT], "line too long")
            elif part.strip():
                yield Line(number, part, None)
            number, dropped = number + 1, False
        if len(pending) > limit or dropped:
            pending, dropped = pending[:EXCERPT], True
    if dropped:
        yield Line(number, pending, "line too long")
    elif pending.strip():
        yield Line(number, pending, None)
    if broken:
        yield Line(number, b"", BROKEN)


def whole(path: Path) -> tuple[bytes, str | None]:
    """All bytes of ``path``, decompressed, and None or what is wrong with the stream."""
    parts = []
    for chunk in _chunks(path):
        if chunk is None:
            return b"".join(parts), BROKEN
        parts.append(chunk)
    return b"".join(parts), None


def _chunks(path: Path) -> Iterator[bytes | None]:
    """Decompressed pieces of at most CHUNK bytes; a last None where the stream is broken."""
    done = 0
    try:
        with _opened(path) as stream:
            while chunk := stream.read(CHUNK):
                done += len(chunk)
                yield chunk
        if path.suffix.lower() == ".zst" and not _zstd_complete(path):
            yield None
    except _broken():
        yield _rest(path, done)
        yield None


def _rest(path: Path, done: int) -> bytes:
    """What can still be decoded behind ``done`` bytes: a read that fails discards what it had."""
    rest = bytearray()
    with suppress(*_broken()), _opened(path) as stream:
        while done > 0:
            done -= len(stream.read(min(done, CHUNK)))
        while byte := stream.read(1):
            rest += byte
    return bytes(rest)


def _broken() -> tuple[type[Exception], ...]:
    from zstandard import ZstdError

    return ZstdError, EOFError, gzip.BadGzipFile, zlib.error


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        with gzip.open(path, "rb") as f:
            yield f
    elif suffix == ".zst":
        from zstandard import ZstdDecompressor

        with path.open("rb") as raw:
            yield ZstdDecompressor(max_window_size=WINDOW_LIMIT).stream_reader(raw, read_across_frames=True)
    else:
        with path.open("rb") as f:
            yield f


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
