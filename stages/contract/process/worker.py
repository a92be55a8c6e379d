"""Run a stage in several processes: the environment that the parent passes to its workers, and their outcomes.

The parent holds the identity, the lock, the outs and the end of the spool. A worker runs the same module in the same
folders with VERDICT_WORKER set, and writes its outcome to <scratch>/workers/rank-N.json: an exit code has no message.
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

from stages import EXIT_INTERRUPTED, EXIT_PREEMPTED
from stages.contract.errors import Preempted, UserError
from stages.contract.files import atomic_write
from stages.contract.params import Params
from stages.contract.process import tether

EXIT_FAILED = 1
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class WorkerOutcome:
    """The end of a worker: ``error`` is a class of stages.contract.errors, "KeyboardInterrupt" or "bug"."""

    rank: int
    error: str
    text: str  # the message, or a bug's traceback


def worker_environment(scratch: Path, spool: Path, params: Params) -> dict[str, str]:
    """Return a worker's environment variables; ``params`` are among them, since params.yaml may have changed.

    Its engine adds VERDICT_WORKER_PARENT, see `die_with_parent`.
    """
    return {
        "VERDICT_WORKER_PARAMS": params.model_dump_json(),
        "VERDICT_WORKER": str(scratch),
        "VERDICT_WORKER_SPOOL": str(spool),
    }


def is_worker() -> bool:
    """Return whether this process is one of several that train together."""
    return "VERDICT_WORKER" in os.environ


def rank() -> int:
    """Return the number of this process among those that train together; 0 if it is alone."""
    return int(os.environ.get("RANK", 0))


def scratch() -> Path:
    """Return the scratch folder of the stage that started this worker."""
    return Path(os.environ["VERDICT_WORKER"])


def spool() -> Path:
    """Return the spool of the stage that started this worker."""
    return Path(os.environ["VERDICT_WORKER_SPOOL"])


def params() -> Params:
    """Return the parent's params."""
    return Params.model_validate_json(os.environ["VERDICT_WORKER_PARAMS"])


def workers_folder(scratch: Path) -> Path:
    """Return the folder of the workers' logs and results in ``scratch``."""
    return scratch / "workers"


def die_with_parent() -> None:
    """Be killed by the kernel when the parent ends.

    Its lock is free then, and the next run may start at once. Two runs must not write checkpoints to one folder.
    On another machine the parent is at HOST:PORT:TOKEN.
    """
    parent = os.environ["VERDICT_WORKER_PARENT"]
    if not parent.isdigit():
        tether.tie(parent, rank())
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # the parent ended before prctl
        os.kill(os.getpid(), signal.SIGKILL)


def record_end(error: BaseException) -> int:
    """Write ``error`` for the parent, and return the exit code that goes with it."""
    name = type(error).__name__
    expected = isinstance(error, UserError | Preempted | KeyboardInterrupt)
    outcome = WorkerOutcome(rank(), name if expected else "bug", str(error) if expected else traceback.format_exc())
    path = workers_folder(scratch()) / f"rank-{rank()}.json"
    try:
        with atomic_write(path) as part:
            part.write_text(json.dumps(asdict(outcome)))
    except OSError:  # a full disk; the parent shows what a worker printed
        print(outcome.text, file=sys.stderr)
    return {"Preempted": EXIT_PREEMPTED, "KeyboardInterrupt": EXIT_INTERRUPTED}.get(name, EXIT_FAILED)


def leave(code: int) -> NoReturn:
    """End this process without tearing down its threads.

    gloo's and DeepSpeed's are still there, and now and then one of them is destroyed too late, which aborts the process
    ("terminate called without an active exception").
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if tether.send_code(code) else code)  # 0: the engine has nothing to report


def outcomes(scratch: Path) -> list[WorkerOutcome]:
    """Return the outcomes that workers wrote, in the order of their ends."""
    files = sorted(workers_folder(scratch).glob("rank-*.json"), key=lambda file: file.stat().st_mtime_ns)
    return [WorkerOutcome(**json.loads(file.read_text())) for file in files]
