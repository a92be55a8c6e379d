"""Disks that are full or refuse to be written: recognize them in any library's error, and count the bytes beforehand.

DVC copies a stage's outs into its cache after the stage has ended; where there is no room it says so and still exits
with 0. So a stage calls `check_room` before it ends.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from stages.contract.errors import UserError

SPARE_BYTES = 1 << 20  # for directory entries, DVC's hash files and dvc.lock
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
FULL_REASONS = [os.strerror(number) for number in FULL]
MAKE_ROOM = "Make room, or move it to a larger disk, and run again; finished work is kept"
ALLOW = "Give this user the right to write there, or run as the folder's owner"
ADVICE = {
    errno.EROFS: "Run in a copy that can be written",
    errno.EIO: "Check the disk and its connection, or use another one",
    errno.EACCES: ALLOW,
    errno.EPERM: ALLOW,
    errno.EISDIR: "A folder is where a file belongs: remove it",
    errno.ENOTDIR: "A file is where a folder belongs: remove it",
}
RUST = re.compile(r"\(os error (\d+)\)")  # safetensors and tokenizers put the errno into their text
TORCH = re.compile(r"inline_container|PytorchStreamWriter")  # torch's C++ writer drops it


def refusal(error: BaseException) -> str:
    """Return why the file system refused to write, or "" if ``error`` has another cause."""
    for e in _chain(error):
        if isinstance(e, OSError) and e.errno in REFUSED:
            return os.strerror(e.errno)
        if (match := RUST.search(str(e))) and int(match[1]) in REFUSED:
            return os.strerror(int(match[1]))
    return "a file could not be written to its end" if any(TORCH.search(str(e)) for e in _chain(error)) else ""


def describe(error: OSError) -> str | None:
    """Return in one line which place cannot be written, why and what to do; None for an error that may be a bug."""
    if not (reason := refusal(error)) and error.errno not in ADVICE:
        return None
    place = Path(error.filename) if isinstance(error.filename, str) else Path.cwd()
    reason = reason or os.strerror(error.errno or 0)
    return f"{place}: {reason} ({free(place) / 1e6:,.1f} MB are free there). {ADVICE.get(error.errno or 0, MAKE_ROOM)}."


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield ``error`` and its causes."""
    seen: set[int] = set()
    e: BaseException | None = error
    while e is not None and id(e) not in seen:
        seen.add(id(e))
        yield e
        e = e.__cause__ or e.__context__


def free(place: Path) -> int:
    """Return the free bytes of the file system that ``place`` lies on; it need not exist yet."""
    return shutil.disk_usage(_existing(place)).free


def size(folder: Path) -> int:
    """Return the bytes of all files below ``folder``."""
    return sum(file.stat().st_size for file in _files(folder))


def explain(what: str, place: Path, needed: float, reason: str = "") -> str:
    """Return in one line why ``what`` of ``needed`` bytes is not written in ``place``.

    Args:
        what: plural, as "checkpoints".
        place: the folder.
        needed: bytes.
        reason: of :func:`refusal`; "" if nobody has tried.
    """
    if not reason or reason in FULL_REASONS or free(place) < needed:
        return f"no room for {what} in {place} (needs {needed / 1e6:,.1f} MB, has {free(place) / 1e6:,.1f} MB)"
    return f"{what} cannot be written in {place} ({reason})"


def check_room(outs: dict[str, str], root: Path, cache: Path) -> None:
    """Check that DVC can put the outs of a stage of the repository at ``root`` into its ``cache``.

    Args:
        outs: path -> DVC's md5. One whose md5 is in the cache needs no space.

    Raises:
        UserError: they have to be copied, and the cache's file system has no space for them.
    """
    folder = _existing(cache)
    new = [root / path for path, md5 in outs.items() if not (cache / "files" / "md5" / md5[:2] / md5[2:]).exists()]
    needed = sum(_blocks(out, folder) for out in new) + SPARE_BYTES
    if new and needed > free(folder) and not all(_linked(out, folder, root) for out in new):
        raise UserError(
            f"DVC's cache {cache} has {free(folder) / 2**20:,.1f} MiB free, and the outs need {needed / 2**20:,.1f} "
            "MiB. Make room there (dvc gc -w removes what this workspace does not use), or move it: dvc cache dir PATH."
        )


def _existing(place: Path) -> Path:
    """Return the nearest folder above ``place``, or itself, that exists."""
    return next((path for path in (place, *place.absolute().parents) if path.exists()), Path("/"))


def _blocks(out: Path, folder: Path) -> int:
    """Return the bytes that a copy of ``out`` takes on the file system of ``folder``."""
    block = os.statvfs(folder).f_frsize
    return sum(-(-path.stat().st_size // block) * block for path in _files(out))


def _files(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.is_file()] if out.is_dir() else [out]


def _linked(out: Path, folder: Path, root: Path) -> bool:
    """Whether DVC brings ``out`` into the cache without a copy: by its hard link, if it is told to, or a reflink."""
    from dvc.config import Config

    if os.stat(folder).st_dev != os.stat(out).st_dev:
        return False
    return Config(str(root / ".dvc"))["cache"].get("type", [])[:1] == ["hardlink"] or _reflinks(_files(out)[0], folder)


def _reflinks(file: Path, folder: Path) -> bool:
    """Whether a copy of ``file`` in ``folder`` can share its blocks."""
    from dvc_objects.fs.system import reflink

    clone = folder / f".reflink-{os.getpid()}"
    try:
        reflink(str(file), str(clone))
        return True
    except (OSError, NotImplementedError):
        return False
    finally:
        clone.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring the file or folder at ``path`` to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def honor_umask(folder: Path) -> None:
    """Give every file of ``folder`` the mode that the process's umask allows.

    safetensors writes to a temporary file of mode 0600 and renames it (safetensors 0.6, serialize_file).
    """
    mode = 0o666 & ~umask()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)


def umask() -> int:
    """Return the process's umask, from Linux's /proc: os.umask can only set it, for all threads."""
    status = Path("/proc/self/status").read_text()
    match = re.search(r"^Umask:\s*([0-7]+)$", status, re.MULTILINE)
    return int(match[1], 8) if match else 0o022
