"""Folders that are there as a whole or not at all, whatever is killed when."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def aside(target: Path) -> Iterator[Path]:
    """An empty folder to write to, which becomes ``target`` at the end of the block: synced first, then renamed."""
    folder = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield folder
    for path in (*folder.iterdir(), folder):
        _sync(path)
    folder.rename(target)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
