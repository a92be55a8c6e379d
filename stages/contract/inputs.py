"""Walk a stage's inputs: one function, for the stage that reads the files and for DVC that hashes them.

DVC (dvc_data.hashfile.build) hashes what os.walk finds. It skips links to folders, and folders that it may not list,
without a word; it waits for ever at a pipe, and ends with a traceback at a broken link or a name that is not UTF-8.
"""

import os
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from stages.contract.errors import UserError, shorten

PASSED_OVER = (".git", ".hg", ".dvc")  # by DVC, at any depth
CACHES = ("__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".ipynb_checkpoints")
"""Folders that programs write beside code, as in .dvcignore; neither DVC nor a stage looks into them."""
KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
TICK = 20_000_000  # nanoseconds; the kernel's clock of files moves every 1 to 10 milliseconds

SYNCED = 2**24  # bytes


class InputError(UserError):
    """An input that DVC and the stage would not see alike."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{shown(path)}{problem}")
        self.path = str(path)


class Stamp(NamedTuple):
    """Attributes that change with the content of a file or folder. Nobody can set ``changed`` (ctime) back."""

    inode: int
    length: int
    modified: int  # nanoseconds
    changed: int


def walk(path: Path) -> list[Path]:
    """Return the files in the folder ``path``, or ``path`` if it is a file; none if there is nothing.

    Raises:
        InputError: a path in it that DVC does not hash or that cannot be read.
    """
    return [entry for entry, status in _entries(path) if stat.S_ISREG(status.st_mode)]


def stamps(paths: Iterable[Path]) -> dict[str, Stamp]:
    """Return the stamps of ``paths``, of all files and folders in them and, where they are links, of the links.

    Folders of Python code have none: Python makes its caches in them while a stage runs.

    Raises:
        InputError: as `walk`.
    """
    result, code = {}, set()
    for path in paths:
        for entry, status in _entries(path):
            result[str(entry)] = _stamp(status)
            if entry.suffix == ".py":
                code.add(str(entry.parent))
            if entry.is_symlink():
                result[f"{entry} (link)"] = _stamp(entry.lstat())
    return {name: stamp for name, stamp in result.items() if name not in code}


def settle_stamps(stamped: dict[str, Stamp]) -> None:
    """Wait until a later change of a file must show in its stamp, as git does with an index ("racy git").

    Two changes within one tick of the kernel's clock have one stamp, and so have a page that is written through a
    memory map and the next write to it, until the page is on disk, where the kernel brings it within 30 seconds. Large
    files are not waited for.
    """
    now = time.time_ns()
    for name, stamp in stamped.items():
        if now - stamp.modified < 60 * 10**9 and stamp.length < SYNCED and os.path.isfile(name):
            with open(name, "rb") as file:
                os.fsync(file.fileno())
    if any(now - stamp.changed < TICK for stamp in stamped.values()):
        time.sleep(TICK / 1e9)


def _entries(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield ``path`` and everything in it, with the status of each; links are followed to files only."""
    rest = [path] if os.path.lexists(path) else []
    while rest:
        entry = rest.pop()
        status = _status(entry)
        yield entry, status
        if stat.S_ISDIR(status.st_mode):
            for name in sorted(set(os.listdir(entry)) - {*PASSED_OVER, *CACHES}, reverse=True):
                rest.append(entry / name)
                if rest[-1].is_symlink() and rest[-1].is_dir():
                    raise InputError(
                        rest[-1],
                        " is a link to a folder, which DVC does not hash. Put the folder itself "
                        "there, or name it in params.yaml.",
                    )


def _status(path: Path) -> os.stat_result:
    """Return the status of ``path``. Raises InputError if it cannot be read, or if DVC does not hash it."""
    try:
        str(path).encode("utf-8")
        status = path.stat()
    except UnicodeEncodeError:
        raise InputError(path, ": the name is not UTF-8, which DVC cannot record. Rename it.") from None
    except OSError as e:
        if path.is_symlink():
            raise InputError(path, f" is a broken link to {shorten(os.readlink(path))}. Remove it.") from None
        raise InputError(path, f" cannot be read: {e.strerror}.") from None
    folder = stat.S_ISDIR(status.st_mode)
    if not folder and not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "a special file")
        raise InputError(path, f" is {kind}; data are files and folders. Remove it.")
    if not os.access(path, os.R_OK | (os.X_OK if folder else 0)):
        raise InputError(path, " cannot be read: permission denied. Change its mode or its owner.")
    if path.name == ".dvcignore":
        raise InputError(path, ": DVC takes no .dvcignore inside of data. Move its lines to the one at the top.")
    if folder and (path / ".dvc").is_dir():
        raise InputError(path, " is a DVC repository of its own, whose files DVC does not hash. Remove its .dvc.")
    return status


def shown(path: Path) -> str:
    r"""Return ``path`` as printable text; bytes that are not UTF-8 as \xNN."""
    return shorten(os.fsencode(path).decode("utf-8", "backslashreplace"), 400)


def _stamp(status: os.stat_result) -> Stamp:
    # A file that DVC links from its cache is read-only, and every further link to it, by other clones too, changes its
    # ctime.
    linked = stat.S_ISREG(status.st_mode) and status.st_nlink > 1 and not status.st_mode & 0o222
    return Stamp(status.st_ino, status.st_size, status.st_mtime_ns, 0 if linked else status.st_ctime_ns)
