"""Read lines of a possibly compressed file in bounded memory, for any bytes. Not for parsing a line."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from stages.contract.errors import UserError

LINE_LIMIT = 16 * 2**20  # bytes
CHUNK = 2**20
READ = 2**15  # bytes that zstd reads at a time, so that `check_ratio` sees its progress
# `zstd --long=31` is the widest window the command line makes; the decoder reserves only the window of the frame.
WINDOW_LIMIT = 2**31
EXCERPT = 120
# Text compresses 3 to 30 times, a corpus of copies 100 times, a bomb 1,000 (gzip) to 30,000 times (zstd). A file is
# refused if WINDOW bytes come from fewer than LEAST.
WINDOW, LEAST = 64 * 2**20, 128 * 2**10

Chunks = Iterator[tuple[bytes | None, int]]  # as `chunks`
Decode = Callable[[Chunks], Chunks]

COMPRESSED = (".gz", ".zst")
BROKEN = "truncated or corrupt compressed stream"


def ending(name: str) -> str:
    """Return the lower-case suffix of the file ``name`` that names its format: that before `.gz` or `.zst`."""
    path = Path(name.lower())
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def stem(name: str) -> str:
    """Return a file's name without its folders and suffixes."""
    path = Path(name)
    return Path(path.stem).stem if path.suffix.lower() in COMPRESSED else path.stem


class Line(NamedTuple):
    """A line without its newline; ``number`` counts from 1.

    ``problem`` is None, or the reason why ``data`` holds only an excerpt.
    """

    number: int
    data: bytes
    problem: str | None


class Block(NamedTuple):
    """Whole lines, the first of which is ``number``; or one unusable line and its ``problem``.

    ``position`` counts the bytes read from the file so far, compressed as it is.
    """

    number: int
    data: bytes
    problem: str | None
    position: int


def lines(path: Path, limit: int = LINE_LIMIT, decode: Decode = iter) -> Iterator[Line]:
    """Yield every line of ``path`` without its newline; blank lines are skipped.

    A line longer than ``limit`` bytes and the end of a damaged stream have a ``problem``; the other lines are whole.
    """
    for block in blocks(path, CHUNK, limit, decode):
        yield from split(block, limit)


def split(block: Block, limit: int = LINE_LIMIT) -> Iterator[Line]:
    """Yield the lines of a block, as `lines` does."""
    if block.problem:
        yield Line(block.number, block.data, block.problem)
        return
    if block.data.isspace():  # gigabytes of blank lines
        return
    for number, data in enumerate(block.data.split(b"\n"), block.number):
        if len(data) > limit:
            yield Line(number, data[:EXCERPT], "line too long")
        elif data.strip():
            yield Line(number, data, None)


def blocks(path: Path, size: int, limit: int = LINE_LIMIT, decode: Decode = iter) -> Iterator[Block]:
    """Yield the lines of ``path`` in blocks; each but the last has at least ``size`` bytes.

    ``decode`` turns stored bytes into lines, as `json_arrays.as_lines` does.
    """
    number, whole, held, pending, dropped = 1, [], 0, b"", False
    chunk: bytes | None = b""
    position = 0
    for chunk, position in decode(chunks(path)):
        if chunk is None:
            break
        if dropped:  # pending is the beginning of a line that is too long
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
    """Return all bytes of ``path``, decompressed, and None; or its beginning and the problem."""
    parts: list[bytes] = []
    size = 0
    for chunk, _ in chunks(path):
        if chunk is None:
            return b"".join(parts), BROKEN
        parts.append(chunk)
        size += len(chunk)
        if size > limit:
            return b"".join(parts), "text too long"
    return b"".join(parts), None


def chunks(path: Path) -> Chunks:
    """Yield at most CHUNK decompressed bytes at a time, with the position in the file; a damaged stream ends in None.

    Raises:
        UserError: as `check_ratio`.
    """
    done, size = 0, path.stat().st_size
    window = position = 0  # start of the last WINDOW bytes: decompressed, and in the file
    try:
        with _opened(path) as (stream, raw):
            while chunk := stream.read(CHUNK):
                done += len(chunk)
                if done - window >= WINDOW:
                    check_ratio(path, done - window, raw.tell() - position)
                    window, position = done, raw.tell()
                yield chunk, raw.tell()
        if path.suffix.lower() == ".zst" and not _zstd_complete(path):
            yield None, size
    except _broken():
        yield _rest(path, done), size
        yield None, size


def check_ratio(path: Path | str, expanded: int, compressed: int) -> None:
    """Raise UserError if at least WINDOW bytes come from fewer than LEAST, in proportion."""
    if expanded >= WINDOW and expanded * LEAST > compressed * WINDOW:
        raise UserError(
            f"{path}: {expanded:,} bytes come from {compressed:,}; no text compresses like this. Remove the file, or "
            "decompress it yourself if you mean it."
        )


def _rest(path: Path, done: int) -> bytes:
    """Return the bytes after the first ``done`` that still decode: a failed read discards its own."""
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
def _opened(path: Path) -> Iterator[tuple[BinaryIO | gzip.GzipFile, BinaryIO]]:
    """Yield the decompressed stream and the file below it."""
    suffix = path.suffix.lower()
    with path.open("rb") as raw:
        if suffix == ".gz":
            with gzip.open(raw, "rb") as stream:
                yield stream, raw
        elif suffix == ".zst":
            from zstandard import ZstdDecompressor

            yield (
                ZstdDecompressor(max_window_size=WINDOW_LIMIT).stream_reader(
                    raw, read_size=READ, read_across_frames=True
                ),
                raw,
            )
        else:
            yield raw, raw


def _zstd_complete(path: Path) -> bool:
    """Return whether every frame reaches its last block (RFC 8878, section 3.1.1).

    The stream reader does not report a truncated file, so this walks the block headers. Blocks hold up to 128 KiB, so
    it reads next to nothing.
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
