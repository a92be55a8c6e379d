"""Launching of a stage's processes, one per device.

They get torchrun's environment, but torchrun does not start them: it turns every exit code into 1, signals whole
process groups, data loader workers among them, and kills 30 seconds later, in the middle of a large checkpoint (torch
2.11, elastic/multiprocessing/api.py).
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from stages.contract import Run, UserError
from stages.contract.errors import Preempted
from stages.contract.process import worker
from stages.contract.tracking.spool import Spool
from stages.trainer.plan.recipe import Recipe

GRACE = 10.0  # seconds in which the others may fail in their own words once one has failed
LOG_LINES = 40


def launch(run: Run, recipe: Recipe) -> None:
    """Run this stage's module in ``recipe.processes`` processes and wait for them.

    Rank 0 prints; the output of another is printed if it fails. SIGTERM and SIGINT are passed on: the workers write a
    checkpoint and end.

    Raises:
        UserError, Preempted, KeyboardInterrupt: the workers raised it.
        SystemExit: a worker failed; the message holds its traceback.
    """
    from torch.distributed import TCPStore

    folder = worker.workers_folder(run.scratch)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # where they meet; any free port
    assert isinstance(run.spool, Spool)
    shared = os.environ | worker.worker_environment(run.scratch, run.spool.folder, run.params)
    shared |= _rendezvous(store.port, recipe.processes)
    if recipe.device == "cpu":
        # DeepSpeed, which accelerate imports, would print a warning in each; accelerate would call the device cpu:0,
        # to which torch.load restores nothing.
        shared |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_TORCH_DEVICE": "cpu"}
    processes: list[subprocess.Popen[bytes]] = []
    with _forwarded(processes) as signals:
        processes += [_start(rank, shared, folder) for rank in range(recipe.processes)]
        for number in signals:  # that came before there were processes
            for process in processes:
                process.send_signal(number)
        killed = _wait(processes)
    _conclude(run, [None if rank in killed else p.returncode for rank, p in enumerate(processes)], signals)


def _rendezvous(port: int, processes: int) -> dict[str, str]:
    """Return torchrun's environment of workers that share the parent's store (torch 2.11, elastic/agent/server)."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // processes))
    return {
        "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
        "OMP_NUM_THREADS": threads,
    }  # fmt: skip


def _start(rank: int, shared: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
    """Start worker ``rank`` in its own session: the terminal's Ctrl-C reaches only the parent, which passes it on."""
    spec = sys.modules["__main__"].__spec__
    assert spec is not None
    env = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    with contextlib.nullcontext() if rank == 0 else (folder / f"rank-{rank}.log").open("wb") as log:  # rank 0 prints
        return subprocess.Popen(
            [sys.executable, "-m", spec.name, *sys.argv[1:]], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


@contextlib.contextmanager
def _forwarded(processes: list[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Pass SIGTERM and SIGINT on to ``processes`` and yield the list of those received; kill what remains after."""
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in processes:
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(processes: list[subprocess.Popen[bytes]]) -> set[int]:
    """Wait for all processes and return the ranks that had to be killed.

    Once one has failed, the others are killed after GRACE: they might wait for it for ever.
    """
    deadline = None
    while running := {rank for rank, process in enumerate(processes) if process.poll() is None}:
        if deadline is None and any(process.returncode for process in processes):
            deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            for rank in running:
                processes[rank].kill()
                processes[rank].wait()
            return running
        time.sleep(0.1)
    return set()


def _conclude(run: Run, codes: list[int | None], signals: list[int]) -> None:
    """Raise the error that best explains the workers' exit ``codes`` (None: killed by `_wait`); none if all are 0.

    A UserError comes first, since a person can mend it. Then a worker that a signal ended, since the lost connections
    of the others follow from it; then the first traceback.
    """
    raised = {outcome.error: outcome for outcome in reversed(worker.outcomes(run.scratch))}  # the first of each kind
    if "UserError" in raised:
        raise UserError(raised["UserError"].text)
    ended = [(rank, code) for rank, code in enumerate(codes) if code is not None and code < 0]
    if ended and signals:  # before there was anything to write
        signal.raise_signal(signals[0])
    if ended:
        rank, code = ended[0]
        hint = " Is there enough memory?" if -code == signal.SIGKILL else ""
        sys.exit(f"{_log(run, rank)}{run.stage}: worker {rank} was ended by {signal.Signals(-code).name}.{hint}")
    if "bug" in raised:
        bug = raised["bug"]
        sys.exit(f"{_log(run, bug.rank)}{run.stage}: worker {bug.rank} of {len(codes)} failed.\n{bug.text}")
    if "Preempted" in raised:
        raise Preempted(raised["Preempted"].text)
    if "KeyboardInterrupt" in raised:
        raise KeyboardInterrupt
    if any(codes):
        rank = next(rank for rank, code in enumerate(codes) if code)
        sys.exit(f"{_log(run, rank)}{run.stage}: worker {rank} ended with exit code {codes[rank]}.")


def _log(run: Run, rank: int) -> str:
    """Return the last lines that a worker printed; rank 0's are on the screen already."""
    file = worker.workers_folder(run.scratch) / f"rank-{rank}.log"
    lines = file.read_text(errors="replace").splitlines()[-LOG_LINES:] if file.exists() else []
    return "".join(f"[worker {rank}] {line}\n" for line in lines)
