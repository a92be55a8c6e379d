"""A stage on two machines trains as on one, and outlives the loss of a worker: a real Slurm, a real Ray."""

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.trainer.parallel import clusters
from tests.trainer.parallel.test_sharding import command, environment, repository, until, workers


@dataclass
class Engine:
    """How to start a command so that its stages find two machines."""

    before: list[str]
    env: dict[str, str]

    def start(self, folder: Path, **more: str) -> subprocess.Popen:
        env = environment(**self.env | more)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*self.before, *command()], cwd=folder, env=env, **pipes)


@pytest.fixture(params=[clusters.slurm, clusters.ray], ids=["slurm", "ray"])
def engine(request):
    with request.param() as (before, env):
        yield Engine(before, env)


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> bytes:
    """Weights of the training in two processes of one machine."""
    folder = repository(tmp_path_factory.mktemp("here"), ["ddp"])
    done = subprocess.run(command(), cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (folder / "out/toy/ddp/model.safetensors").read_bytes()


def test_two_machines_lose_a_worker_and_end_in_the_same_weights(engine, here, tmp_path):
    repository(tmp_path, ["ddp"])
    stage = engine.start(tmp_path, TOY_SECONDS="1", VERDICT_CHECKPOINT_SECONDS="0.1")
    until(lambda: stage.poll() is not None or any(tmp_path.glob(".dvc/cache-checkpoints/*/*/ddp/checkpoint-*")))
    [second] = [pid for pid in workers(tmp_path) if rank(pid) == 1]
    os.kill(second, signal.SIGKILL)
    _, errors = stage.communicate(timeout=60)
    assert stage.returncode == 75, errors
    assert "toy: worker 1 of 2 was lost; the next run resumes" in errors
    assert workers(tmp_path) == []

    stage = engine.start(tmp_path)
    printed, errors = stage.communicate(timeout=120)
    assert stage.returncode == 0, errors
    assert "resuming from step" in printed
    assert (tmp_path / "out/toy/ddp/model.safetensors").read_bytes() == here


def rank(pid: int) -> int:
    variables = dict(v.split(b"=", 1) for v in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if b"=" in v)
    return int(variables.get(b"RANK", -1))
