"""What a program and everything it starts takes: CPU-seconds, memory, time."""

import ctypes
import json
import os
import resource
import subprocess
import threading
import time
from pathlib import Path
from typing import NamedTuple

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
PAGE = os.sysconf("SC_PAGE_SIZE")
EVERY = 0.1  # seconds between two looks at the memory


class Taken(NamedTuple):
    """``cpu``: user and system seconds of the whole tree; ``peak``: bytes that were resident in it at once, without
    pages of files; ``wall``: seconds; ``said``: the last line of its output, if it is JSON."""

    cpu: float
    peak: int
    wall: float
    said: dict


def measured(command: list[str], log: Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> Taken:
    """What ``command`` takes, whose output goes to ``log``.

    Workers of a forkserver are nobody's children once their server has ended, so this process adopts what its
    descendants leave behind, and waits for it: all of it counts.

    Raises:
        RuntimeError: the command failed; with the end of what it said.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before, began, over, peak = _children(), time.monotonic(), threading.Event(), [0]
    watcher = threading.Thread(target=_watch, args=(os.getpid(), over, peak), daemon=True)
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        watcher.start()
        code = process.wait()
    while _adopted():
        os.wait()
    wall = time.monotonic() - began
    over.set()
    watcher.join()
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if code:
        raise RuntimeError(f"{' '.join(map(str, command))} exited with {code}:\n" + "\n".join(lines[-15:]))
    said = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return Taken(round(_children() - before, 3), peak[0], round(wall, 3), said)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _adopted() -> bool:
    return os.getpid() in _parents().values()


def _watch(root: int, over: threading.Event, peak: list[int]) -> None:
    while not over.wait(EVERY):
        parents, known = _parents(), {root}
        while more := {pid for pid, parent in parents.items() if parent in known and pid not in known}:
            known |= more
        peak[0] = max(peak[0], sum(map(_resident, known - {root})))


def _parents() -> dict[int, int]:
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            found[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # ended meanwhile
            continue
    return found


def _resident(pid: int) -> int:
    try:
        _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    except OSError:
        return 0
    return PAGE * (resident - shared)  # shared pages would count once a process
