"""Write files and folders whole or not at all, and hold the lock file of work that only one process may do.

Not for a stage's outs: DVC removes what a failed stage left there.
"""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from stages.contract import disk

POLL_SECONDS = 0.1  # flock has no timeout, and a wait in the kernel keeps Python from handling a signal


class Locked(Exception):
    """Another process holds the lock; ``holder`` is its id, or "unknown"."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"process {holder} holds {path}")
        self.holder = holder


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a hidden path next to ``path``, with its suffix; the file written there replaces ``path`` after the block.

    A reader of ``path`` sees all of the old file or all of the new one. A block that raises leaves the old one.
    """
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; synced to the disk, it replaces ``path`` after the block.

    One writer at a time: it removes the unfinished folder of a writer that was killed. A block that raises leaves
    ``path`` as it was.
    """
    part = path.with_name(f".{path.name}.part")
    remove(part)
    part.mkdir(parents=True)
    try:
        yield part
        for file in (*part.rglob("*"), part):
            disk.sync(file)
        replace_folder(part, path)
    finally:
        remove(part)


def replace_folder(written: Path, path: Path) -> None:
    """Rename the folder ``written`` to ``path``, where nothing may be: rename(2) replaces only an empty folder."""
    remove(path)
    written.rename(path)
    disk.sync(path.parent)


def remove(path: Path) -> None:
    """Remove a folder, a file, a link or nothing, as far as the file system allows it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, patience: float = 0.0, wait: Callable[[str], None] = lambda holder: None) -> Iterator[None]:
    """Hold the lock file ``path``, which names this process, until the block ends or the process dies.

    Args:
        path: in a folder that is made if there is none.
        patience: seconds for which another process that holds it is waited for.
        wait: called once with that process's id before the wait.

    Raises:
        Locked: another process still holds it.
        OSError: the file cannot be written.
    """
    deadline, waiting = time.monotonic() + patience, False
    while (lock := _lock(path)) is None:
        if time.monotonic() >= deadline:
            raise Locked(path, _holder(path))
        if not waiting:
            wait(_holder(path))
            waiting = True
        time.sleep(POLL_SECONDS)
    with lock:
        yield


def _lock(path: Path) -> TextIO | None:
    """Return the open and locked file ``path``, with this process's id in it; None if another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(lock.fileno()), os.stat(path)):
            raise FileNotFoundError
    except (BlockingIOError, FileNotFoundError):  # held, or its holder is done and removed it after it was opened
        lock.close()
        return None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeError):  # it is done
        return path.read_text().strip() or "unknown"
    return "unknown"
