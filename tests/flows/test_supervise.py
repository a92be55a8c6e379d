import os
import signal
import subprocess
import sys

import pytest

from flows import supervise
from flows.supervise import STOPPED, TIMED_OUT
from tests.flows.conftest import PATIENCE, alive, wait_for

# Starts a helper that ignores SIGINT, as sh's background jobs do, and notes both process ids.
STUBBORN = ["sh", "-c", "sleep 600 & echo $! $$ > pids; echo started; wait"]
POLITE = ["sh", "-c", "trap 'echo saved; exit 75' INT; echo started; while :; do sleep 0.1; done"]


def start(cwd, command, grace=1.0, timeout=0.0):
    return subprocess.Popen(
        supervise.command(grace, timeout, command),
        cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def pids(folder):
    return [int(pid) for pid in wait_for(lambda: (folder / "pids").exists() and (folder / "pids").read_text().split())]


@pytest.mark.parametrize(("command", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 128 + 9)])
def test_passes_on_exit_code_and_output(tmp_path, command, code):
    process = start(tmp_path, ["sh", "-c", f"echo out; echo err >&2; {command}"])
    assert process.stdout.read() == "out\nerr\n"
    assert process.wait(PATIENCE) == code


def test_all_output_arrives(tmp_path):
    process = start(tmp_path, [sys.executable, "-c", "for i in range(200_000): print(i)"])
    lines = process.stdout.read().split()
    assert lines == [str(i) for i in range(200_000)]
    assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("inherited", [signal.SIG_DFL, signal.SIG_IGN])
def test_end_of_stdin_interrupts_and_lets_the_command_save(tmp_path, inherited):
    """Also where a shell has started all of it in the background, with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, inherited)
    try:
        process = start(tmp_path, POLITE, grace=600)
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stdout.readline() == "started\n"
    process.stdin.close()
    assert process.stdout.read() == "saved\n"
    assert process.wait(PATIENCE) == STOPPED


def test_what_ignores_the_interrupt_is_killed_after_the_grace(tmp_path):
    process = start(tmp_path, STUBBORN)
    group = pids(tmp_path)
    process.stdin.close()
    assert process.wait(PATIENCE) == STOPPED
    assert not any(map(alive, group))


def test_timeout_ends_the_whole_group(tmp_path):
    process = start(tmp_path, STUBBORN, timeout=2)
    assert process.wait(PATIENCE) == TIMED_OUT
    assert not any(map(alive, pids(tmp_path)))


def test_death_of_the_starter_ends_the_command(tmp_path):
    command = supervise.command(1, 0, STUBBORN)
    code = f"import subprocess as s; p = s.Popen({command!r}, stdin=s.PIPE); p.wait()"
    starter = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.DEVNULL)
    group = pids(tmp_path)
    assert all(map(alive, group))
    os.kill(starter.pid, signal.SIGKILL)
    starter.wait()
    wait_for(lambda: not any(map(alive, group)))


def test_detached_helper_neither_delays_the_end_nor_is_killed(tmp_path):
    helper = "import subprocess as s; print(s.Popen(['sleep', '600'], start_new_session=True).pid)"
    process = start(tmp_path, [sys.executable, "-c", helper])
    pid = int(process.stdout.read())  # to the end of the output, though the helper holds its side open
    assert process.wait(PATIENCE) == 0
    assert alive(pid)
    os.kill(pid, signal.SIGKILL)


def test_sigterm_stops_the_command_and_its_last_lines_arrive(tmp_path):
    """As for end of stdin; and what the command's child says after the command itself was killed."""
    family = [
        "sh",
        "-c",
        "sh -c \"trap 'sleep 0.3; echo saved; exit 75' INT; echo \\$PPID; while :; do sleep 0.1; done\"",
    ]
    polite, orphaned = start(tmp_path, POLITE, grace=600), start(tmp_path, [*family, "; :"], grace=600)
    assert polite.stdout.readline() == "started\n"
    polite.send_signal(signal.SIGTERM)
    assert polite.communicate(timeout=PATIENCE) == ("saved\n", None) and polite.returncode == STOPPED
    os.kill(int(orphaned.stdout.readline()), signal.SIGKILL)
    assert orphaned.communicate(timeout=PATIENCE)[0] == "saved\n"


def test_death_of_the_supervisor_ends_the_command(tmp_path):
    process = start(tmp_path, ["sh", "-c", "echo $$; exec sleep 600"])
    pid = int(process.stdout.readline())
    process.kill()
    wait_for(lambda: not alive(pid))
