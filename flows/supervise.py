"""Run one command and kill it when its starter exits or its timeout expires.

    python supervise.py GRACE TIMEOUT COMMAND [ARGUMENT ...]

The command gets its own process group and its output is passed on. The group is stopped when stdin reaches its end
(the starter closed its side or died), on SIGINT or SIGTERM, when nobody reads the output any more, or after TIMEOUT
seconds (0: no limit). Stopping is SIGINT, which stages take as "save a checkpoint and stop" and DVC leaves to its
command (SIGTERM would end DVC and orphan the command), and SIGKILL after GRACE seconds. Processes that a finished
command leaves behind in its group are stopped the same way.

Exit code: the command's (128 + n for signal n); 124 after the timeout, 130 for a command stopped on its starter's
behalf, unless it still ended with 0.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

TIMED_OUT, STOPPED = 124, 130
GRACE_SECONDS = 30  # a stage's, for a checkpoint between SIGINT and SIGKILL
POLL_SECONDS = 0.2
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def command(grace: float, timeout: float, arguments: list[str]) -> list[str]:
    """Return the command that runs ``arguments`` supervised; its starter holds the other end of its stdin."""
    return [sys.executable, __file__, str(grace), str(timeout), *arguments]


def supervise(grace: float, timeout: float, arguments: list[str]) -> int:
    """Run the command ``arguments`` under the module's contract and return the exit code."""
    # A shell starts background jobs with SIGINT ignored. The command would inherit that, and a shell in it cannot
    # undo it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    child = subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        preexec_fn=_end_with_parent,
    )  # fmt: skip
    assert child.stdout is not None
    output = child.stdout.fileno()
    os.set_blocking(output, False)
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):  # systemd and containers send it to every process
        signal.signal(number, lambda number, frame: signals.append(number))
    end = time.monotonic() + timeout if timeout else None
    why = 0
    watched = {0, output}
    while (code := child.poll()) is None:
        ending = output not in watched  # its output closes just before it ends
        ready = select.select(list(watched), [], [], POLL_SECONDS / 20 if ending else POLL_SECONDS)[0]
        if output in ready and not _pass_on(output):
            watched.discard(output)
        if not why and (signals or (0 in ready and not os.read(0, 4096))):
            why = STOPPED
        elif not why and end and time.monotonic() > end:
            why = TIMED_OUT
        if why and 0 in watched:
            watched.discard(0)
            _signal(child.pid, signal.SIGINT)
            end = time.monotonic() + grace
        elif why and end and time.monotonic() > end:
            _signal(child.pid, signal.SIGKILL)
    # Not to the end of the output: a detached helper of the command may hold the pipe open for ever.
    _pass_on(output)
    _end_group(child.pid, grace, output)
    if code and why:
        return why
    return code if code >= 0 else 128 - code


def _end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its supervisor is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _pass_on(fd: int) -> bool:
    """Copy the available bytes of ``fd`` to stdout; return False at its end."""
    with contextlib.suppress(BlockingIOError):
        while data := os.read(fd, 1 << 16):
            _write(data)
        return False
    return True


def _write(data: bytes) -> None:
    # Without a reader the command must still be stopped in order; the end of stdin, which comes with it, does that.
    with contextlib.suppress(BrokenPipeError):
        while data:
            data = data[os.write(1, data) :]


def _end_group(group: int, grace: float, output: int) -> None:
    """Stop the rest of process group ``group``, in at most ``grace`` seconds, and pass on its last output."""
    end = time.monotonic() + grace
    alive = _signal(group, signal.SIGINT)
    while alive and time.monotonic() < end:
        time.sleep(POLL_SECONDS / 4)
        alive = _signal(group, 0)
        _pass_on(output)
    _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> bool:
    """Send a signal to a process group; False if there is none."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS: PermissionError for a group of zombies
        return False
    return True


if __name__ == "__main__":
    sys.exit(supervise(float(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
