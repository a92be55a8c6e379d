"""Clusters of two "machines" on this one, for tests: Slurm by Debian's programs, and Ray."""

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.debian import installed

PROGRAMS = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "srun": "slurm-client"}
# Two slurmd on one host: Debian's is built for it, and each node has a port of its own.
SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool-%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd-%n.pid
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=ALL Default=YES
"""


@contextlib.contextmanager
def slurm() -> Iterator[tuple[list[str], dict[str, str]]]:
    """What to write before a command, and the environment, to run it in an allocation of two nodes."""
    import getpass

    paths = {command: installed(command, package) for command, package in PROGRAMS.items()}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        home = Path(name)
        home.chmod(0o755)  # munge asks for it
        (home / "state").mkdir()
        (home / "munge.key").write_bytes(os.urandom(1024))
        (home / "munge.key").chmod(0o400)
        values = {"host": socket.gethostname(), "ports": free_ports(3), "home": home, "user": getpass.getuser()}
        (home / "slurm.conf").write_text(SLURM_CONF.format(**values))
        env = {"SLURM_CONF": str(home / "slurm.conf")}
        files = [f"--{kind}-file={home}/munge.{kind}" for kind in ("key", "pid", "log", "seed")]
        for command in (
            [paths["munged"], "--foreground", "--force", f"--socket={home}/munge.socket", *files],
            [paths["slurmctld"], "-D", "-c"],
            *([paths["slurmd"], "-D", "-N", node] for node in ("one", "two")),
        ):
            stack.enter_context(daemon(command, os.environ | env, home))
        until_idle(os.environ | env)
        yield ["salloc", "--quiet", "--nodes=2", "--ntasks-per-node=1"], env


@contextlib.contextmanager
def daemon(command: list[str], env: dict[str, str], home: Path) -> Iterator[None]:
    with (home / "daemons.log").open("ab") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def until_idle(env: dict[str, str]) -> None:
    deadline = time.monotonic() + 60
    command = ["sinfo", "--noheader", "--Node", "--format=%T"]
    while (states := subprocess.run(command, env=env, capture_output=True, text=True).stdout.split()) != ["idle"] * 2:
        if time.monotonic() > deadline:
            pytest.skip(f"Slurm's daemons do not start here: its nodes are {states}")
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def ray() -> Iterator[tuple[list[str], dict[str, str]]]:
    """The same for a cluster of two Ray nodes."""
    pytest.importorskip("ray", reason="ray is not installed: pip install ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield [], {"VERDICT_LAUNCHER": "ray", "RAY_ADDRESS": cluster.address}
    finally:
        cluster.shutdown()
