"""A stage starts itself once for every device and waits.

The processes get the environment that torchrun would give them, but are not started by it: torchrun tells a stage's
exit codes apart from nothing (all are 1), signals whole process groups, data loader workers among them, and kills 30
seconds later, in the middle of a large checkpoint (torch 2.11, elastic/multiprocessing/api.py).
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

from stages.contract import Run, UserError, worker
from stages.contract.errors import Preempted
from stages.trainer.recipe import Recipe

GRACE = 10.0  # seconds in which the others may fail in their own words once one has failed
LOG_LINES = 40


def launch(run: Run, recipe: Recipe) -> None:
    """Run this stage's module in ``recipe.processes`` processes. Rank 0 prints; what the others print is shown if they
    fail. SIGTERM and SIGINT are theirs: they write a checkpoint and end.

    Raises:
        UserError, Preempted, KeyboardInterrupt: what the workers raised.
        SystemExit: a worker failed; the message holds its traceback.
    """
    from torch.distributed import TCPStore

    folder = worker.folder(run.scratch)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # they meet here; any free port
    shared = os.environ | worker.environment(run.scratch, run.spool.folder) | _rendezvous(store.port, recipe.processes)
    if recipe.device == "cpu":
        # DeepSpeed, which accelerate imports, would print a warning in each; accelerate would call the device cpu:0,
        # to which torch.load restores nothing.
        shared |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_TORCH_DEVICE": "cpu"}
    processes: list[subprocess.Popen] = []
    with _forwarded(processes) as signals:
        processes += [_start(rank, shared, folder) for rank in range(recipe.processes)]
        killed = _wait(processes)
    _conclude(run, [None if rank in killed else p.returncode for rank, p in enumerate(processes)], signals)


def _rendezvous(port: int, processes: int) -> dict[str, str]:
    """As torchrun sets it for workers that share the parent's store (torch 2.11, elastic/agent/server)."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // processes))
    return {
        "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
        "OMP_NUM_THREADS": threads,
    }  # fmt: skip


def _start(rank: int, shared: dict[str, str], folder: Path) -> subprocess.Popen:
    """Worker ``rank``, in a session of its own: the terminal's Ctrl-C reaches the parent alone, which passes it on."""
    command = [sys.executable, "-m", sys.modules["__main__"].__spec__.name]
    env = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    if rank == 0:
        return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
    with (folder / f"rank-{rank}.log").open("wb") as log:
        return subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


@contextlib.contextmanager
def _forwarded(processes: list[subprocess.Popen]) -> Iterator[list[int]]:
    """SIGTERM and SIGINT go to ``processes``; yields the list of those that came. None of them outlives the block."""
    came: list[int] = []

    def forward(number, frame):
        came.append(number)
        for process in processes:
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(processes: list[subprocess.Popen]) -> set[int]:
    """Wait for all. Once one has failed, the others are killed after GRACE: they might wait for it for ever.

    Returns: the ranks that were killed.
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
    """Raise what explains the workers' exit ``codes`` (None: ended by `_wait`) best; nothing if all are 0.

    A worker that raised something the person can mend comes first; then one that a signal ended, since the others'
    complaints about the lost connection only follow from it; then the first traceback.
    """
    told = {outcome.error: outcome for outcome in reversed(worker.outcomes(run.scratch))}  # the first of each kind
    if "UserError" in told:
        raise UserError(told["UserError"].text)
    ended = [(rank, code) for rank, code in enumerate(codes) if code is not None and code < 0]
    if ended and signals:  # before there was anything to write
        signal.raise_signal(signals[0])
    if ended:
        rank, code = ended[0]
        hint = " Is there enough memory?" if -code == signal.SIGKILL else ""
        sys.exit(f"{_log(run, rank)}{run.stage}: worker {rank} was ended by {signal.Signals(-code).name}.{hint}")
    if "bug" in told:
        bug = told["bug"]
        sys.exit(f"{_log(run, bug.rank)}{run.stage}: worker {bug.rank} of {len(codes)} failed.\n{bug.text}")
    if "Preempted" in told:
        raise Preempted(told["Preempted"].text)
    if "KeyboardInterrupt" in told:
        raise KeyboardInterrupt
    if any(codes):
        rank = next(rank for rank, code in enumerate(codes) if code)
        sys.exit(f"{_log(run, rank)}{run.stage}: worker {rank} ended with exit code {codes[rank]}.")


def _log(run: Run, rank: int) -> str:
    """The last lines a worker printed; rank 0's are on the screen already."""
    file = worker.folder(run.scratch) / f"rank-{rank}.log"
    lines = file.read_text(errors="replace").splitlines()[-LOG_LINES:] if file.exists() else []
    return "".join(f"[worker {rank}] {line}\n" for line in lines)
