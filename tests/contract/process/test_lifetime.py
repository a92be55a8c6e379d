"""Who started a stage, whatever shell and signal settings lie between, and that the stage ends with it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def ignored():
    """As a shell starts a background job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def blocked():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def running(pid):
    """Not so for a zombie, which waits for whoever inherited it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return value


@pytest.mark.parametrize("sigint", [None, ignored, blocked])
@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_a_killed_dvc_takes_its_stage_with_it(repo, shell, sigint):
    """Not so by itself: the orphan goes on writing while a second run starts."""
    command = [sys.executable, "-m", "dvc", "repro", "-q"]
    env = os.environ | {"TOY_SECONDS": "10", "SHELL": shell}
    dvc = subprocess.Popen(command, env=env, preexec_fn=sigint)
    try:
        (record,) = wait_for(lambda: list((repo / ".verdict/spool").glob("*/run.json")))
        run = json.loads(record.read_text())
        assert run["pipeline"].split("-")[:2] == ["dvc", str(dvc.pid)], "one pipeline for all stages of a repro"
    finally:
        dvc.send_signal(signal.SIGKILL)
        dvc.wait()
    assert wait_for(lambda: not running(run["pid"]))


def test_a_stage_typed_into_a_shell_is_left_to_that_shells_hangup(repo):
    """`nohup python -m stages.pretrain &` goes on after the shell is closed."""
    script = f"{sys.executable} -m tests.contract.toy & while [ ! -e .verdict/spool/*/run.json ]; do sleep 0.1; done"
    subprocess.run(["/bin/sh"], input=script, text=True, check=True, env=os.environ | {"TOY_SECONDS": "0.2"})
    assert wait_for(lambda: list((repo / ".verdict/spool").glob("*/end.json")))
