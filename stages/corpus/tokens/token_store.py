"""Store the tokens of a corpus larger than memory on disk, document after document.

A store is a folder with tokens.bin, lengths.bin (int64, of each document) and sums.bin: the documents, tokens and
checksum (xxh3, int64) of each `append`. Files only grow.
"""

import os
from pathlib import Path

import numpy as np

FILES = ("tokens.bin", "lengths.bin", "sums.bin")


def append(folder: Path, tokens: np.ndarray, counts: np.ndarray) -> None:
    """Append documents to ``folder``: their tokens back to back, and the number of each document's tokens."""
    counts = counts.astype(np.int64)
    sums = np.array([len(counts), len(tokens), _digest(tokens.tobytes(), counts.tobytes())], np.int64)
    for name, array in zip(FILES, (tokens, counts, sums), strict=True):  # sums last: they mark complete batches
        with (folder / name).open("ab") as f:
            array.tofile(f)
            f.flush()
            os.fsync(f.fileno())


def begin_store(folder: Path, dtype: type[np.unsignedinteger]) -> int:
    """Open or create a store; return its number of documents.

    An incomplete or damaged append, and everything after it, is cut off.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).touch()
    documents = tokens = appended = 0
    width = np.dtype(dtype).itemsize
    with (folder / FILES[0]).open("rb") as of_tokens, (folder / FILES[1]).open("rb") as of_lengths:
        left = [(folder / name).stat().st_size for name in FILES[:2]]
        for some, count, digest in _sums(folder):
            sizes = (count * width, 8 * some)
            left = [room - size for room, size in zip(left, sizes, strict=True)]
            if min(*sizes, *left) < 0 or digest != _digest(of_tokens.read(sizes[0]), of_lengths.read(sizes[1])):
                break
            documents, tokens, appended = documents + some, tokens + count, appended + 1
    for name, size in zip(FILES, (tokens * width, 8 * documents, 24 * appended), strict=True):
        os.truncate(folder / name, size)
    return documents


def document_lengths(folder: Path) -> np.ndarray:
    """Return the number of each document's tokens, int64 (documents,)."""
    return np.fromfile(folder / "lengths.bin", np.int64)


def _sums(folder: Path) -> list[list[int]]:
    data = (folder / "sums.bin").read_bytes()
    return np.frombuffer(data[: len(data) // 24 * 24], np.int64).reshape(-1, 3).tolist()


def _digest(*parts: bytes) -> int:
    """Return a checksum of 63 bits of all parts and their lengths."""
    from xxhash import xxh3_64

    digest = xxh3_64()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.intdigest() >> 1
