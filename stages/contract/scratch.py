"""Keep a stage's unfinished work: one folder per identity, next to DVC's cache, locked while a process works in it.

Work is kept only while its inputs are known to be those of the identity. Once they changed, whatever was written
after their last check is removed: the old inputs may be put back, and the stage would resume from it.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from stages.contract.errors import UserError
from stages.contract.files import Locked, atomic_write, locked
from stages.contract.identity import Identity
from stages.contract.inputs import TICK, Stamp
from stages.contract.tracking import locations

LOCK, INPUTS, CHECKED = ".lock", ".inputs.json", ".checked"


@contextlib.contextmanager
def locked_scratch(identity: Identity, patience: float = 0.0) -> Iterator[Path]:
    """Yield the folder for checkpoints of this identity, locked: one process an identity, also across worktrees.

    Waits ``patience`` seconds for a process that holds the lock.

    Raises:
        UserError: another process holds the lock, or the folder cannot be written.
    """
    folder = locations.checkpoints(identity.cache) / identity.stage / identity.fingerprint[:32]
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / LOCK, patience, functools.partial(_print_wait, patience)))
        except Locked as e:
            raise UserError(
                f"the same work is already running in process {e.holder} (lock: {folder / LOCK})."
            ) from None
        except OSError as e:
            raise UserError(
                f"the folder for checkpoints, {folder}, cannot be written ({e.strerror}). Make room or make it "
                "writable, or set VERDICT_CHECKPOINTS to another folder."
            ) from None
        yield folder


def _print_wait(patience: float, holder: str) -> None:
    print(f"waiting for process {holder}, which does the same work, {patience:.0f} s at most", flush=True)


def forget(identity: Identity) -> None:
    """Remove the checkpoints of unfinished work that nobody will resume; not those of a process at work."""
    with contextlib.suppress(UserError), locked_scratch(identity) as folder:
        shutil.rmtree(folder)


def inherit(scratch: Path, root: Path, stamps: dict[str, Stamp]) -> None:
    """Resume from ``scratch``, the unfinished work of an earlier execution; ``stamps`` are of the inputs in ``root``.

    If the inputs were touched since that execution began, whatever it wrote after its last check is removed: they may
    have been edited and put back. Stamps of another workspace cannot be compared.
    """
    inputs = {"root": str(root), "stamps": hashlib.sha256(json.dumps(stamps, sort_keys=True).encode()).hexdigest()}
    note = scratch / INPUTS
    with contextlib.suppress(OSError, ValueError):
        before = json.loads(note.read_text())
        if before != inputs and isinstance(before, dict) and before.get("root") == str(root):
            drop_unchecked(scratch)
    with atomic_write(note) as part:  # cut short by a full disk, it would compare with nothing
        part.write_text(json.dumps(inputs))
    mark_checked(scratch, time.time_ns())


def mark_checked(scratch: Path, moment: int) -> None:
    """Note that the inputs were those of the identity at ``moment``, in nanoseconds since the epoch."""
    (scratch / CHECKED).touch()
    os.utime(scratch / CHECKED, ns=(moment, moment))


def drop_unchecked(scratch: Path) -> bool:
    """Remove files written after the last check of the inputs; return whether any other file is left."""
    try:
        checked = (scratch / CHECKED).stat().st_mtime_ns - TICK
    except FileNotFoundError:
        checked = 0
    work = [entry for entry in scratch.iterdir() if entry.name not in (LOCK, INPUTS, CHECKED)]
    for entry in work:
        if _written(entry) > checked:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    return any(os.path.lexists(entry) for entry in work)


def _written(entry: Path) -> int:
    """Return when ``entry`` or anything in it was written last, in nanoseconds since the epoch."""
    status = entry.lstat()
    inside = map(_written, entry.iterdir()) if entry.is_dir() and not entry.is_symlink() else ()
    return max(status.st_mtime_ns, status.st_ctime_ns, *inside)
