"""Write folders of unfinished work as a whole or not at all, and detect damage when a run resumes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from stages.contract.files import atomic_folder

SUMS = "sums.json"  # xxh3 checksum (64 bits) of every other file
CHUNK = 2**20


@contextmanager
def aside(target: Path) -> Iterator[Path]:
    """Yield an empty folder. After the block, add the checksums of its files and rename it to ``target``."""
    with atomic_folder(target) as folder:
        yield folder
        (folder / SUMS).write_bytes(orjson.dumps({path.name: file_digest(path) for path in sorted(folder.iterdir())}))


def intact(target: Path) -> bool:
    """Return whether the files of ``target`` match their checksums; print a line if one does not."""
    if not target.exists():
        return False
    try:
        sums = orjson.loads((target / SUMS).read_bytes())
        if all(file_digest(target / name) == digest for name, digest in sums.items()):
            return True
    except (OSError, ValueError, AttributeError):
        pass
    print(f"{target}: damaged; it is made again", flush=True)
    return False


def file_digest(path: Path) -> str:
    """Return xxh3's 64 bits of a file's content, hexadecimal."""
    from xxhash import xxh3_64

    digest = xxh3_64()
    with path.open("rb") as f:
        while chunk := f.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
