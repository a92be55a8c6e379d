"""A stage in several processes: what the one that was started passes to its workers, and what they tell it.

The parent holds the identity, the lock, the outs and the end of the spool. A worker runs the same module with
VERDICT_WORKER set, works in the same folders, and leaves how it ended in <scratch>/workers/rank-N.json: an exit
code alone cannot say which line went wrong.
"""

import ctypes
import json
import os
import signal
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from stages.contract.errors import Preempted, UserError

EXIT_FAILED, EXIT_PREEMPTED, EXIT_INTERRUPTED = 1, 75, 130
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Outcome:
    """How a worker ended: ``error`` is a class of stages.contract.errors, "KeyboardInterrupt" or "bug"."""

    rank: int
    error: str
    text: str  # the message, or a bug's traceback


def environment(scratch: Path, spool: Path) -> dict[str, str]:
    """What a worker is told, as environment variables."""
    return {
        "VERDICT_WORKER": str(scratch),
        "VERDICT_WORKER_SPOOL": str(spool),
        "VERDICT_WORKER_PARENT": str(os.getpid()),
    }


def is_worker() -> bool:
    return "VERDICT_WORKER" in os.environ


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def scratch() -> Path:
    return Path(os.environ["VERDICT_WORKER"])


def spool() -> Path:
    return Path(os.environ["VERDICT_WORKER_SPOOL"])


def folder(scratch: Path) -> Path:
    return scratch / "workers"


def die_with_parent() -> None:
    """Be killed by the kernel when the parent ends. Its lock is free then: the next run may start at once, and two of
    them must not write checkpoints to one folder."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ["VERDICT_WORKER_PARENT"]):  # it ended before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)


def record(error: BaseException) -> int:
    """Leave ``error`` for the parent, and return the exit code that goes with it."""
    name = type(error).__name__
    told = isinstance(error, UserError | Preempted | KeyboardInterrupt)
    outcome = Outcome(rank(), name if told else "bug", str(error) if told else traceback.format_exc())
    path = folder(scratch()) / f"rank-{rank()}.json"
    path.with_suffix(".part").write_text(json.dumps(asdict(outcome)))
    path.with_suffix(".part").replace(path)
    return {"Preempted": EXIT_PREEMPTED, "KeyboardInterrupt": EXIT_INTERRUPTED}.get(name, EXIT_FAILED)


def leave(code: int) -> NoReturn:
    """End this process without tearing down its threads: gloo's and DeepSpeed's are still there, and now and then one
    of them is destroyed too late, which aborts the process ("terminate called without an active exception")."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def outcomes(scratch: Path) -> list[Outcome]:
    """Of the workers that left one, first to last."""
    files = sorted(folder(scratch).glob("rank-*.json"), key=lambda file: file.stat().st_mtime_ns)
    return [Outcome(**json.loads(file.read_text())) for file in files]
