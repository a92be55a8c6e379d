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


class Taken(NamedTuple):
    """``cpu``: user and system seconds of the whole tree; ``peak``: bytes resident in it at once, seen every 50 ms;
    ``wall``: seconds; ``said``: the last line of its output, from JSON."""

    cpu: float
    peak: int
    wall: float
    said: object


def measured(note: Path, cached: bool, command: list[str], cwd: Path | None = None, env: dict | None = None) -> Taken:
    """What ``command`` takes, also written to ``note``; from there, without a run, if ``cached`` and it is there.

    Forkserver's processes are nobody's children once their server has ended, so this process adopts what its
    descendants leave behind: waited for, all of it counts.

    Raises:
        RuntimeError: the command failed; with the end of what it said.
    """
    if cached and note.exists():
        return Taken(*json.loads(note.read_text()))
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before, began, over, peak = _children(), time.monotonic(), threading.Event(), [0]
    log = note.with_suffix(".log")
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        watcher = threading.Thread(target=_watch, args=(os.getpid(), over, peak), daemon=True)
        watcher.start()
        code = process.wait()
    while _adopted():
        os.wait()
    over.set()
    watcher.join()
    if code:
        raise RuntimeError(f"{' '.join(map(str, command))} exited with {code}:\n" + "\n".join(_lines(log)[-15:]))
    last = _lines(log)[-1:]
    said = json.loads(last[0]) if last and last[0].startswith(("{", "[")) else None
    taken = Taken(round(_children() - before, 3), peak[0], round(time.monotonic() - began, 3), said)
    note.write_text(json.dumps(taken))
    return taken


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _lines(log: Path) -> list[str]:
    return [line for line in log.read_text(errors="replace").splitlines() if line.strip()]


def _adopted() -> list[int]:
    return [pid for pid, parent in _parents().items() if parent == os.getpid()]


def _watch(root: int, over: threading.Event, peak: list[int]) -> None:
    while not over.wait(0.05):
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
