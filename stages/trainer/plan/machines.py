"""Machines that train together: this one, those of a Slurm allocation, or those of a Ray cluster.

Not for starting anything on them: `stages.trainer.parallel.engines`.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stages.contract.errors import UserError

ANSWER_SECONDS = 60.0  # in which a node must run a task that does nothing


@dataclass(frozen=True)
class Machines:
    """Names of the machines as their ``launcher`` knows them, a row of LAUNCHERS; () for this one alone."""

    launcher: str
    names: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return len(self.names) or 1


HERE = Machines("local")


def find_machines() -> Machines:
    """Return the machines that VERDICT_LAUNCHER names; without it those of a Slurm allocation, or this one.

    Raises:
        UserError: an unknown launcher, or one that has no machines here.
    """
    wanted = os.environ.get("VERDICT_LAUNCHER") or "auto"
    if wanted == "auto":
        several = int(os.environ.get("SLURM_JOB_NUM_NODES") or 1) > 1 and shutil.which("srun")
        wanted = "slurm" if several else "local"
    if wanted not in LAUNCHERS:
        raise UserError(f"VERDICT_LAUNCHER is {wanted!r}; it must be auto, {', '.join(LAUNCHERS)}.")
    return Machines(wanted, LAUNCHERS[wanted]())


def _local() -> tuple[str, ...]:
    return ()


def _slurm() -> tuple[str, ...]:
    """Return the nodes of this allocation that run a task: Slurm lists a lost one for minutes (SlurmdTimeout)."""
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    if not nodes or not (shutil.which("srun") and shutil.which("sinfo")):
        reason = "srun and sinfo are not here" if nodes else "SLURM_JOB_NODELIST is not set"
        raise UserError(f"VERDICT_LAUNCHER is slurm, but this is no allocation ({reason}). Use salloc or sbatch.")
    command = ["sinfo", "--noheader", "--responding", "--Node", f"--nodes={nodes}", "--format=%N"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    names = tuple(dict.fromkeys(listed.stdout.split()))
    if not _answer(names):
        names = tuple(name for name in names if _answer((name,)))
    if not names:
        raise UserError(f"VERDICT_LAUNCHER is slurm, but no node of {nodes} runs a task: {listed.stderr.strip()}")
    return names


def _answer(names: tuple[str, ...]) -> bool:
    """Return whether each node runs a task that does nothing."""
    count = len(names)
    where = [f"--nodes={count}", f"--nodelist={','.join(names)}", f"--ntasks={count}", "--ntasks-per-node=1"]
    command = ["srun", *where, "--overlap", "--overcommit", "--quiet", "true"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=ANSWER_SECONDS
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _ray() -> tuple[str, ...]:
    """Return the ids of the cluster's nodes that have GPUs, or of all if none has."""
    alive = [node for node in connect_ray().nodes() if node["Alive"]]
    return tuple(sorted(node["NodeID"] for node in _with_gpus(alive) or alive))


def _with_gpus(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [node for node in nodes if node["Resources"].get("GPU")]


def connect_ray() -> Any:
    """Return the module ray, connected to the cluster at RAY_ADDRESS or to that of this machine."""
    try:
        import ray
    except ImportError:
        raise UserError("VERDICT_LAUNCHER is ray, which is not installed: pip install ray.") from None
    try:
        ray.init("auto", ignore_reinit_error=True, logging_level="ERROR", namespace="verdict")
    except ConnectionError:
        raise UserError(
            "VERDICT_LAUNCHER is ray, but no cluster answers. Start one with `ray start --head`, or set RAY_ADDRESS."
        ) from None
    return ray


# VERDICT_LAUNCHER -> function that names its machines. `stages.trainer.parallel.engines` has a row for each, too.
LAUNCHERS: dict[str, Callable[[], tuple[str, ...]]] = {"local": _local, "slurm": _slurm, "ray": _ray}
