"""A worker elsewhere gets its stage's signals, sends its exit code, and ends with its stage."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.contract.errors import UserError
from stages.contract.process.tether import LOST, Tethers

ROOT = Path(__file__).resolve().parents[3]
WORKER = """
import os, signal, sys
from stages.contract.process import tether

def leave(code):
    tether.send_code(code)
    os._exit(code)

signal.signal(signal.SIGTERM, lambda *_: leave(75))
tether.tie(sys.argv[1], int(sys.argv[2]))
exec(sys.argv[3])
"""


@pytest.fixture
def tethers():
    ends = Tethers(2, lambda: "")
    yield ends
    ends.close()


def start(tethers: Tethers, rank: int, work: str) -> subprocess.Popen:
    command = [sys.executable, "-c", WORKER, f"127.0.0.1:{tethers.address}", str(rank), work]
    return subprocess.Popen(command, cwd=ROOT)


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def test_exit_codes_come_back_and_a_killed_worker_is_lost(tethers):
    processes = [start(tethers, 0, "leave(3)"), start(tethers, 1, "os.kill(os.getpid(), 9)")]
    until(lambda: None not in [worker.poll() for worker in tethers.workers])
    assert [worker.returncode for worker in tethers.workers] == [3, LOST]
    assert [process.wait() for process in processes] == [3, -9]


def test_signals_arrive_also_those_sent_before_the_worker(tethers):
    tethers.workers[0].send_signal(signal.SIGTERM)
    processes = [start(tethers, rank, "while True: signal.pause()") for rank in range(2)]
    until(lambda: tethers.workers[0].poll() == 75)
    until(lambda: tethers.workers[1].poll() is None and tethers.workers[1].connection)
    tethers.workers[1].send_signal(signal.SIGTERM)
    until(lambda: tethers.workers[1].poll() == 75)
    assert [process.wait() for process in processes] == [75, 75]


def test_workers_end_with_their_stage(tethers):
    process = start(tethers, 0, "while True: signal.pause()")
    until(lambda: tethers.workers[0].poll() is None and tethers.workers[0].connection)
    tethers.close()
    assert process.wait(60) == -9


def test_a_stranger_is_no_worker_and_a_missing_one_is_named():
    ended = []
    ends = Tethers(1, lambda: "".join(ended))
    with socket.create_connection(("127.0.0.1", int(ends.address.split(":")[0]))) as stranger:
        stranger.sendall(b"x" * 32 + b"00000000")
        assert ends.workers[0].poll() is None and ends.workers[0].connection is None
        ended.append("the engine ended")
        with pytest.raises(UserError, match="worker 0 of 1 did not start: the engine ended"):
            ends.workers[0].poll()
    ends.close()
