"""Launching of a stage's processes, one per device, by one of the engines.

They get torchrun's environment, but torchrun does not start them: it turns every exit code into 1, signals whole
process groups, data loader workers among them, and kills 30 seconds later, in the middle of a large checkpoint (torch
2.11, elastic/multiprocessing/api.py).
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType

from pydantic import TypeAdapter

from stages.contract import Run, UserError
from stages.contract.errors import Preempted
from stages.contract.process import worker
from stages.contract.process.tether import NotStarted
from stages.contract.tracking.spool import Spool
from stages.trainer.parallel.engines import ENGINES, Crew, WorkerHandle
from stages.trainer.plan.hardware import Hardware
from stages.trainer.plan.recipe import Recipe

GRACE = 10.0  # seconds in which the others may fail in their own words once one has failed
LOG_LINES = 40
PASSED_RECIPE = "VERDICT_WORKER_RECIPE"


def launch(run: Run, machine: Hardware, processes: int, recipe: Recipe | None = None) -> None:
    """Run this stage's module in ``processes`` processes and wait for them.

    Rank 0 prints; the output of another is printed if it fails. SIGTERM and SIGINT are passed on: the workers write a
    checkpoint and end.

    Args:
        run: of the stage.
        machine: devices and machines to run on.
        processes: workers, one a device.
        recipe: what the workers get by `passed_recipe`.

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
    spec = sys.modules["__main__"].__spec__
    assert spec is not None
    shared = os.environ | worker.worker_environment(run.scratch, run.spool.folder, run.params)
    if recipe:
        shared[PASSED_RECIPE] = TypeAdapter(Recipe).dump_json(recipe).decode()
    if machine.device == "cpu":
        # DeepSpeed, which accelerate imports, would print a warning in each; accelerate would call the device cpu:0,
        # to which torch.load restores nothing.
        shared |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_TORCH_DEVICE": "cpu"}
    crew = Crew([sys.executable, "-m", spec.name, *sys.argv[1:]], shared, folder, processes, machine.machines)
    crew.environment.update(_rendezvous(store.port, crew))
    workers: list[WorkerHandle] = []
    try:
        with _forwarded(workers) as signals, ENGINES[crew.machines.launcher](crew) as started:
            workers += started
            for number in signals:  # that came before there were workers
                for each in workers:
                    each.send_signal(number)
            killed = _wait(workers)
    except NotStarted as e:
        if any(run.scratch.rglob("checkpoint-*")):  # they have started before: a machine is lost that its engine lists
            raise Preempted(str(e)) from None
        raise
    codes = [None if rank in killed else each.returncode for rank, each in enumerate(workers)]
    _conclude(run, codes, signals, crew.machines.launcher)


def passed_recipe() -> Recipe:
    """Return the recipe that the launcher of this worker chose: all must train alike, also on unlike machines."""
    return TypeAdapter(Recipe).validate_json(os.environ[PASSED_RECIPE])


def _rendezvous(port: int, crew: Crew) -> dict[str, str]:
    """Return torchrun's environment of workers that share the parent's store (torch 2.11, elastic/agent/server)."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // crew.per_machine))
    return {
        "WORLD_SIZE": str(crew.count), "LOCAL_WORLD_SIZE": str(crew.per_machine), "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0", "OMP_NUM_THREADS": threads,
    }  # fmt: skip


@contextlib.contextmanager
def _forwarded(processes: list[WorkerHandle]) -> Iterator[list[int]]:
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


def _wait(processes: list[WorkerHandle]) -> set[int]:
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


def _conclude(run: Run, codes: list[int | None], signals: list[int], launcher: str) -> None:
    """Raise the error that best explains the workers' exit ``codes`` (None: killed by `_wait`); none if all are 0.

    A UserError comes first, since a person can mend it. Then a worker that a signal ended, since the lost connections
    of the others follow from it; then the first traceback. Of several machines, one may be lost at any time: that is
    a preemption.
    """
    raised = {outcome.error: outcome for outcome in reversed(worker.outcomes(run.scratch))}  # the first of each kind
    if "UserError" in raised:
        raise UserError(raised["UserError"].text)
    ended = [(rank, code) for rank, code in enumerate(codes) if code is not None and code < 0]
    if ended and signals:  # before there was anything to write
        signal.raise_signal(signals[0])
    if ended and launcher != "local":
        said = raised["bug"].text.strip().splitlines()[-1] if "bug" in raised else ""
        raise Preempted(
            f"worker {ended[0][0]} of {len(codes)} was lost; the next run resumes on the machines that are left, from "
            f"the last checkpoint in {run.scratch}{f'. Another said: {said}' if said else ''}"
        )
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
