"""Run one stage: `dvc repro --single-item` in its own process group, its output passed on line by line."""

import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from flows import supervise
from flows.console import is_chatter
from flows.planned import Outcome, Stage
from flows.supervise import GRACE_SECONDS, STOPPED, TIMED_OUT
from flows.surroundings import environment
from stages import EXIT_INTERRUPTED, EXIT_PREEMPTED
from stages.contract.secrets import redact

CACHED = re.compile(r"didn't change, skipping|is cached - skipping run")
NOT_CACHED = re.compile(r"^ERROR: failed to transfer '")  # by DVC, which goes on and exits with 0
EXITED = re.compile(r"exited with (-?\d+)$")


def run(stage: Stage, root: Path, emit: Callable[[str], None], env: dict[str, str], lifeline: int) -> Outcome:
    """Reproduce ``stage`` in the repository at ``root`` and return its outcome.

    Args:
        emit: called with each line of output.
        env: added to this process's environment.
        lifeline: a file descriptor to read from. When the pipe's other end closes, or this process dies, the stage is
            stopped in at most ``GRACE_SECONDS``.
    """
    started = time.monotonic()
    # Without --wait-for-lock, parallel stages fail with "Unable to acquire lock", some after finishing their work.
    arguments = ["--wait-for-lock", "repro", "--single-item", *["--force"] * stage.force, stage.name]
    command = supervise.command(GRACE_SECONDS, stage.timeout or 0, [sys.executable, "-m", "dvc", *arguments])
    lines: deque[str] = deque(maxlen=100)
    _running.append(stage)
    try:
        with subprocess.Popen(
            command, cwd=root, env=environment(env), stdin=lifeline, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            encoding="utf-8", errors="replace", start_new_session=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            for line in filter(None, map(str.rstrip, process.stdout)):
                line = redact(line)
                lines.append(line)
                emit(line)
    finally:
        _running.remove(stage)
    return outcome(stage, process.returncode, list(lines), time.monotonic() - started)


def running() -> bool:
    """Whether this process runs a stage."""
    return bool(_running)


_running: list[Stage] = []


def outcome(stage: Stage, code: int, lines: list[str], seconds: float) -> Outcome:
    """Interpret the supervisor's exit code ``code`` and the stage's last ``lines``.

    DVC turns every failure into 255 and prints the command's own exit code.
    """
    own_lines = [line for line in lines if not is_chatter(line) and not line.startswith("> ")]
    tail = tuple(own_lines[-5:])
    if code == 0:
        if any(NOT_CACHED.search(line) for line in lines):
            return Outcome("Failed", "DVC could not put its outs into the cache", seconds, tail)
        cached = any(CACHED.search(line) for line in lines)
        return Outcome("Cached" if cached else "Completed", "unchanged" if cached else "", seconds, tail)
    if code == STOPPED:
        return Outcome("Cancelled", "interrupted", seconds, tail)
    if code == TIMED_OUT:
        return Outcome("TimedOut", f"stopped after its timeout of {stage.timeout:g} s", seconds, tail)
    if number := _signal(code):
        message = f"its dvc was killed by {signal.Signals(number).name}; the stage's saved work is kept"
        return Outcome("Preempted", message, seconds, tail)
    exits = [int(match[1]) for line in lines if (match := EXITED.search(line))]
    if not exits:
        return Outcome("Failed", f"dvc exited with {code}", seconds, tail)
    if exits[-1] == EXIT_PREEMPTED:
        return Outcome("Preempted", "preempted; its checkpoint is kept", seconds, tail)
    if exits[-1] == EXIT_INTERRUPTED or _signal(exits[-1]) in (signal.SIGINT, signal.SIGTERM):
        return Outcome("Preempted", "preempted before it had anything to save", seconds, tail)
    return Outcome("Failed", _explain_exit(exits[-1]), seconds, tail)


def _explain_exit(code: int) -> str:
    number = _signal(code)
    if number == signal.SIGKILL:
        return "killed (SIGKILL); the usual reason is that the machine ran out of memory"
    return f"killed by {signal.Signals(number).name}" if number else f"exited with {code}"


def _signal(code: int) -> int:
    """Return the signal of an exit code, or 0: -n, and from a shell or :mod:`flows.supervise` 128 + n."""
    number = -code if code < 0 else code - 128
    return number if number in list(signal.Signals) else 0
