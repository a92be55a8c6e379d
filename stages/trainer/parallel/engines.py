"""Engines that start a stage's workers: this process, Slurm's `srun`, Ray. Each is a row of ENGINES.

An engine starts the same command on its machines and states who is who: RANK, LOCAL_RANK, MASTER_ADDR. All else is the
launcher's (`launching`) and the tether's (`stages.contract.process.tether`), which are the same for all engines.
"""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stages.contract.process.tether import Tethers
from stages.trainer.plan.machines import Machines, connect_ray

END_SECONDS = 30.0  # for an engine whose workers have ended; Slurm's KillWait


class WorkerHandle(Protocol):
    """A started worker; `subprocess.Popen` is one."""

    returncode: Any  # int | None

    def poll(self) -> int | None: ...

    def send_signal(self, number: int, /) -> None: ...

    def kill(self) -> None: ...

    def wait(self) -> int: ...


@dataclass(frozen=True)
class Crew:
    """Workers to start."""

    command: list[str]
    environment: dict[str, str]  # of all
    folder: Path  # where a worker's output goes, to rank-N.log; rank 0 prints
    count: int
    machines: Machines

    @property
    def per_machine(self) -> int:
        """Workers of a machine; the last machine may have fewer."""
        return -(-self.count // self.machines.count)

    @property
    def names(self) -> tuple[str, ...]:
        """The machines that get a worker."""
        return self.machines.names[: -(-self.count // self.per_machine)]


@contextlib.contextmanager
def start_here(crew: Crew) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start the workers as children of this process."""
    shared = crew.environment | {"MASTER_ADDR": "127.0.0.1", "VERDICT_WORKER_PARENT": str(os.getpid())}
    yield [_start(crew, rank, shared) for rank in range(crew.count)]


def _start(crew: Crew, rank: int, shared: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start worker ``rank`` in its own session: the terminal's Ctrl-C reaches only the parent, which passes it on."""
    env, file = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, crew.folder / f"rank-{rank}.log"
    with contextlib.nullcontext() if rank == 0 else file.open("wb") as log:  # rank 0 prints
        return subprocess.Popen(
            crew.command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


# What `srun` lets a task know, in torchrun's words; srun's own node is the head's. See the environment in srun(1).
SRUN_TASK = """
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID MASTER_ADDR=$SLURM_LAUNCH_NODE_IPADDR
export VERDICT_WORKER_PARENT=$MASTER_ADDR:$TETHER
[ "$RANK" = 0 ] || exec >"$LOGS/rank-$RANK.log" 2>&1
exec "$@"
"""


# What `srun` would take over from the allocation: numbers of tasks, and one visible GPU a task (LOCAL_RANK counts all).
ASKED_OF_SLURM = {
    "SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_GPU", "SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK",
    "SLURM_GPU_BIND",
}  # fmt: skip


@contextlib.contextmanager
def start_by_srun(crew: Crew) -> Iterator[list[Any]]:
    """Start the workers as tasks of one `srun` in this allocation, next to whatever else runs there (`--overlap`).

    A task that fails does not end the others, which have something to say: the launcher ends them.
    """
    step: subprocess.Popen[bytes] | None = None

    def ended() -> str:
        return f"srun ended with exit code {step.returncode}" if step and step.poll() is not None else ""

    tethers = Tethers(crew.count, ended)
    cores = min(map(int, re.findall(r"(?:^|,)(\d+)", os.environ["SLURM_JOB_CPUS_PER_NODE"])))  # such as "72(x2),36"
    command = [
        "srun", f"--nodes={len(crew.names)}", f"--nodelist={','.join(crew.names)}", f"--ntasks={crew.count}",
        f"--ntasks-per-node={crew.per_machine}", f"--cpus-per-task={max(1, cores // crew.per_machine)}",
        "--cpu-bind=quiet,none", "--overcommit", "--overlap", "--export=ALL", "--kill-on-bad-exit=0", "--wait=0",
        "sh", "-c", SRUN_TASK, "sh", *crew.command,
    ]  # fmt: skip
    env = crew.environment | {"TETHER": tethers.address, "LOGS": str(crew.folder)}
    env = {name: value for name, value in env.items() if name not in ASKED_OF_SLURM}
    try:
        step = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
        yield tethers.workers
    finally:
        tethers.close()
        if step:
            _finish(step)


def _finish(step: subprocess.Popen[bytes]) -> None:
    """Wait for the end of an engine's program, whose workers have ended or end now."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(subprocess.TimeoutExpired):
            step.wait(END_SECONDS)
            return
        step.send_signal(number)
    step.wait()


@contextlib.contextmanager
def start_by_ray(crew: Crew) -> Iterator[list[Any]]:
    """Start the workers by one Ray task a machine, which holds the machine's GPUs, or one of its cores."""
    ray = connect_ray()
    from ray.util import get_node_ip_address, placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    here, per, root = get_node_ip_address(), crew.per_machine, os.getcwd()
    gpus = per if any(node["Resources"].get("GPU") for node in ray.nodes()) else 0
    tasks: list[Any] = []

    def ended() -> str:
        done, _ = ray.wait(tasks, num_returns=1, timeout=0) if tasks else ([], [])
        return "a task of Ray has ended" if done else ""

    tethers = Tethers(crew.count, ended)
    shared = crew.environment | {"MASTER_ADDR": here, "VERDICT_WORKER_PARENT": f"{here}:{tethers.address}"}
    group = placement_group([{"GPU": gpus} if gpus else {"CPU": 1}] * len(crew.names), strategy="STRICT_SPREAD")
    try:
        for machine in range(len(crew.names)):
            ranks = range(machine * per, min(crew.count, (machine + 1) * per))
            own = [{"RANK": str(rank), "LOCAL_RANK": str(rank - ranks[0])} for rank in ranks]
            place = PlacementGroupSchedulingStrategy(group, machine)
            options = {"num_cpus": 0 if gpus else 1, "num_gpus": gpus, "max_retries": 0, "scheduling_strategy": place}
            task = ray.remote(**options)(_ray_task())
            tasks.append(task.remote(crew.command, [shared | names for names in own], str(crew.folder), root))
        yield tethers.workers
    finally:
        tethers.close()
        if tasks:
            ray.wait(tasks, num_returns=len(tasks), timeout=END_SECONDS)
        remove_placement_group(group)


def _ray_task() -> Callable[..., None]:
    """Return what a Ray task does. Ray sends a function within a function whole, so its machine need not find it."""

    def work(command: list[str], environments: list[dict[str, str]], logs: str, root: str) -> None:
        import os
        import subprocess

        visible = {name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES",) if name in os.environ}
        started = []
        for env in environments:
            out = None if env["RANK"] == "0" else open(f"{logs}/rank-{env['RANK']}.log", "wb")  # noqa: SIM115
            started.append(
                subprocess.Popen(command, env=env | visible, cwd=root, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
            )
        for process in started:
            process.wait()

    return work


# A launcher of `stages.trainer.plan.machines.LAUNCHERS` -> context in which its workers run.
ENGINES: dict[str, Callable[[Crew], AbstractContextManager[list[Any]]]] = {
    "local": start_here,
    "slurm": start_by_srun,
    "ray": start_by_ray,
}
