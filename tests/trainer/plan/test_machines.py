"""The machines of a launcher, as the environment and Slurm's `sinfo` state them."""

import os
from pathlib import Path

import pytest

from stages.contract.errors import UserError
from stages.trainer.parallel.engines import ENGINES, Crew
from stages.trainer.plan.hardware import detect_hardware
from stages.trainer.plan.machines import HERE, LAUNCHERS, Machines, find_machines


@pytest.fixture
def allocation(tmp_path, monkeypatch):
    """An allocation of three nodes, of which two answer."""
    for name, text in {"srun": "", "sinfo": "printf 'a1\\na2\\na1\\n'"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "a[1-3]")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "3")


def test_every_launcher_has_an_engine():
    assert LAUNCHERS.keys() == ENGINES.keys()


def test_this_machine_alone_is_the_default(monkeypatch):
    monkeypatch.delenv("VERDICT_LAUNCHER", raising=False)
    assert find_machines() == HERE and HERE.count == 1


def test_an_allocation_of_several_nodes_is_used_as_far_as_they_answer(allocation, monkeypatch):
    assert find_machines() == Machines("slurm", ("a1", "a2"))
    assert detect_hardware().description.endswith("; 2 machines by slurm")
    monkeypatch.setenv("VERDICT_LAUNCHER", "local")
    assert find_machines() == HERE


@pytest.mark.parametrize(
    ("launcher", "says"),
    [("mpi", "VERDICT_LAUNCHER is 'mpi'; it must be auto, local, slurm, ray."),
     ("slurm", "VERDICT_LAUNCHER is slurm, but this is no allocation")],
)  # fmt: skip
def test_a_launcher_that_cannot_be_used_is_refused(monkeypatch, launcher, says):
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    monkeypatch.setenv("VERDICT_LAUNCHER", launcher)
    with pytest.raises(UserError, match=says):
        find_machines()


@pytest.mark.parametrize(
    ("count", "per_machine", "names"), [(8, 4, ("a", "b")), (5, 3, ("a", "b")), (1, 1, ("a",)), (2, 1, ("a", "b"))]
)
def test_workers_are_spread_over_the_machines(count, per_machine, names):
    crew = Crew([], {}, Path(), count, Machines("slurm", ("a", "b")))
    assert (crew.per_machine, crew.names) == (per_machine, names)
