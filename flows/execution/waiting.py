"""Wait until no earlier run works in a repository, and repair the rwlock file that a crash left to DVC.

After its flow was killed, a stage has 30 seconds to save its checkpoint; until then its `dvc` holds DVC's rwlock. That
file survives a crash: with entries of processes that have ended, or with half of its text.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from stages.contract import disk
from stages.contract.errors import UserError
from stages.contract.files import atomic_write
from stages.contract.process.lifetime import started
from stages.contract.tracking import locations

PATIENCE_SECONDS = 90  # three times a stage's grace
POLL_SECONDS = 0.2
CLOCK_DRIFT = 2.0  # seconds by which the time of a file and of a process may differ: clocks are adjusted
T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """A process that works in a repository."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})"


class Occupied(UserError):
    """Another process works in this repository."""


def until_free(root: Path, say: Callable[[str], None]) -> None:
    """Repair DVC's rwlock and return once no other process runs a stage in the repository at ``root``.

    ``say`` prints one line if there is a process to wait for.

    Raises:
        Occupied: one still runs after ``PATIENCE_SECONDS``.
    """
    end, announced = time.monotonic() + PATIENCE_SECONDS, False
    while busy := repair_rwlock(root, say) or [*_running_stages(root)]:
        if time.monotonic() > end:
            raise Occupied(f"{busy[0]} is still at work here. Wait for its end, or stop it: kill {busy[0].pid}")
        if not announced:
            say(f"waiting for {busy[0]} to end, {PATIENCE_SECONDS} s at most: it works here, or is saving its state")
            announced = True
        time.sleep(POLL_SECONDS)


def patiently(work: Callable[[], T], root: Path, say: Callable[[str], None]) -> T:
    """Return ``work()`` once no other process runs a stage at ``root``; retry for a while if it raises Occupied."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        until_free(root, say)
        try:
            return work()
        except Occupied:
            if time.monotonic() > end:
                raise


def repair_rwlock(root: Path, say: Callable[[str], None] = lambda line: None) -> list[Process]:
    """Remove the entries of ended processes from DVC's rwlock in ``root``; return the others that hold it.

    A file that DVC cannot parse is removed if no DVC process works in ``root``; otherwise those processes are returned.

    Raises:
        UserError: it cannot be repaired; the line names the file to remove.
    """
    import zc.lockfile

    path = root / ".dvc" / "tmp" / "rwlock"
    while os.path.lexists(path):
        try:
            with contextlib.closing(zc.lockfile.LockFile(f"{path}.lock")):  # DVC's own
                return _repair_locked(path, root, say)
        except zc.lockfile.LockError:  # another process edits the file
            time.sleep(POLL_SECONDS)
        except OSError as e:
            advice = f"{path} cannot be repaired: {e.strerror}. Remove it when no dvc process is at work."
            raise UserError(disk.describe(e) or advice) from None
    return []


def _repair_locked(path: Path, root: Path, say: Callable[[str], None]) -> list[Process]:
    entries = _parse(path)
    if entries is None:
        if working := [*_dvc_processes(root)]:
            return working
        path.unlink()
        say(f"{path.relative_to(root)} was torn by a crash or a full disk; no dvc process is at work, so it is removed")
        return []
    written = path.stat().st_mtime
    infos = [*entries["write"].values(), *(info for readers in entries["read"].values() for info in readers)]
    alive = {info["pid"]: info["cmd"] for info in infos if _wrote(info, written)}
    kept = {
        "write": {name: info for name, info in entries["write"].items() if info["pid"] in alive},
        "read": {name: [i for i in readers if i["pid"] in alive] for name, readers in entries["read"].items()},
    }
    kept["read"] = {name: readers for name, readers in kept["read"].items() if readers}
    if kept != entries:
        with atomic_write(path) as part:
            part.write_text(json.dumps(kept), encoding="utf-8")
            os.utime(part, (written, written))
    return [Process(pid, command) for pid, command in alive.items() if pid != os.getpid()]


def _parse(path: Path) -> dict[str, Any] | None:
    """Return the entries of the rwlock ``path`` by DVC's own schema; None if they do not fit it."""
    from dvc.rwlock import SCHEMA
    from voluptuous import Invalid

    try:
        return SCHEMA(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, Invalid, RecursionError):
        return None


def _wrote(info: dict[str, Any], written: float) -> bool:
    """Whether the process that a lock entry names made it, in a file written at ``written``: ids are used again."""
    try:
        process = psutil.Process(info["pid"])
        command = " ".join(process.cmdline())
        began = process.create_time()
    except psutil.Error:  # ended, or a zombie
        return False
    words = [word for word in info["cmd"].split()[1:] if len(word) > 3]
    return began <= written + CLOCK_DRIFT and any(word in command for word in ("dvc", "flows.", *words))


def _running_stages(root: Path) -> Iterator[Process]:
    """Yield the stages that run in ``root``, by their spools: also those whose `dvc` has ended."""
    for path in locations.spools(locations.home(root)).glob("*/run.json"):
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            pid, stage = run["pid"], run["stage"]
            if started(pid) != run["pid_started"] or pid == os.getpid():
                continue
            here = psutil.Process(pid).cwd() == str(root.resolve())
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):  # shipped meanwhile, or not a stage's
            continue
        if here:
            yield Process(pid, f"stage {stage}")


def _dvc_processes(root: Path) -> Iterator[Process]:
    """Yield other processes in the folder ``root`` that may hold DVC's rwlock."""
    for process in psutil.process_iter(["cwd", "cmdline"]):
        words = process.info["cmdline"] or []
        here = process.info["cwd"] == str(root.resolve()) and process.pid != os.getpid()
        if here and any(Path(word).name.startswith("dvc") for word in words):
            yield Process(process.pid, " ".join(words))
