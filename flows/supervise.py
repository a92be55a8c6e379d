"""Run one command so that it can outlive neither its starter nor its time.

    python supervise.py GRACE TIMEOUT COMMAND [ARGUMENT ...]

The command gets a process group of its own and its output is passed on. The group is stopped when stdin
reaches its end (the starter closed its side or died, in whatever way), when nobody reads the output any more,
or when TIMEOUT seconds have passed (0: no limit). Stopping is SIGINT, which stages take as "save a checkpoint
and stop" and DVC leaves to its command (SIGTERM would end DVC and orphan the command), and SIGKILL after GRACE
seconds. What a finished command leaves behind in its group is stopped the same way.

Exit code: the command's (128 + n for signal n); 124 for a command stopped for its time, 130 for one stopped
on its starter's behalf, unless it still ended with 0.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

TIMED_OUT, STOPPED = 124, 130
POLL_SECONDS = 0.2


def supervise(grace: float, timeout: float, child: int, output: int, poll: Callable[[], int | None]) -> int:
    """See to the process ``child``, a session of its own, under the module's contract, and return the exit code.

    ``output`` is the file descriptor where what it says is read; ``poll`` tells its exit code, -n for signal n, or None
    as long as it has none.
    """
    os.set_blocking(output, False)
    end = time.monotonic() + timeout if timeout else None
    why = 0
    watched = {0, output}
    while (code := poll()) is None:
        ending = output not in watched  # its output closes just before it ends
        ready = select.select(list(watched), [], [], POLL_SECONDS / 20 if ending else POLL_SECONDS)[0]
        if output in ready and not _pass_on(output):
            watched.discard(output)
        if not why and 0 in ready and not os.read(0, 4096):
            why = STOPPED
        elif not why and end and time.monotonic() > end:
            why = TIMED_OUT
        if why and 0 in watched:
            watched.discard(0)
            _signal(child, signal.SIGINT)
            end = time.monotonic() + grace
        elif why and time.monotonic() > end:
            _signal(child, signal.SIGKILL)
    # Not to the end of the output: a detached helper of the command may hold the pipe open for ever.
    _pass_on(output)
    _end_group(child, grace)
    if code and why:
        return why
    return code if code >= 0 else 128 - code


def answer_interrupts() -> None:
    """Take SIGINT as from a keyboard, here and in what is started from here.

    A shell starts background jobs with SIGINT ignored, which a command would inherit and a shell in it cannot undo.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _pass_on(fd: int) -> bool:
    """Copy what can be read from ``fd`` to stdout; False at its end."""
    with contextlib.suppress(BlockingIOError):
        while data := os.read(fd, 1 << 16):
            _write(data)
        return False
    return True


def _write(data: bytes) -> None:
    # Without a reader the command must still be stopped in order: stdin's end, which comes with it, does that.
    with contextlib.suppress(BrokenPipeError):
        while data:
            data = data[os.write(1, data) :]


def _end_group(group: int, grace: float) -> None:
    """Stop what is left of process group ``group``, in at most ``grace`` seconds."""
    end = time.monotonic() + grace
    alive = _signal(group, signal.SIGINT)
    while alive and time.monotonic() < end:
        time.sleep(POLL_SECONDS / 4)
        alive = _signal(group, 0)
    _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> bool:
    """Send a signal to a process group; False if there is none."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS: PermissionError for a group of zombies
        return False
    return True


def main(grace: float, timeout: float, command: list[str]) -> int:
    answer_interrupts()
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    return supervise(grace, timeout, child.pid, child.stdout.fileno(), child.poll)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
