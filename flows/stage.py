"""One stage's execution: `dvc repro --single-item` in a process group of its own, line by line."""

import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flows import repro
from flows.graph import Stage
from flows.supervise import STOPPED, TIMED_OUT

GRACE_SECONDS = 30  # for a checkpoint between SIGINT and SIGKILL
EXIT_PREEMPTED = 75  # the stage was stopped and left a checkpoint to go on from
SUPERVISE = Path(__file__).with_name("supervise.py")

CACHED = re.compile(r"didn't change, skipping|is cached - skipping run")
EXITED = re.compile(r"exited with (-?\d+)$")
CHATTER = re.compile(
    r"Running stage '|(Generating|Updating) lock file|To (track the changes with git|enable auto staging), run:"
    r"|\s*(git add |dvc config core\.autostage)|Use `dvc push`|Data and pipelines are up to date"
    r"|ERROR: failed to reproduce '[^']*': failed to run:|Stage '[^']*' (didn't change|is cached)"
)


@dataclass(frozen=True)
class Outcome:
    """How a stage's execution ended. ``state`` names the Prefect state it becomes: Completed, Cached, Failed,
    Preempted, TimedOut or Cancelled."""

    state: str
    message: str = ""
    seconds: float = 0.0
    tail: tuple[str, ...] = ()  # the stage's last lines


def run(stage: Stage, root: Path, emit: Callable[[str], None], env: dict[str, str], lifeline: int) -> Outcome:
    """Reproduce ``stage`` in the repository at ``root`` and pass each line of output to ``emit``.

    The stage is stopped, in at most ``GRACE_SECONDS``, when the other end of the pipe ``lifeline`` (a file
    descriptor to read from) is closed, be it by the death of this process.
    """
    started = time.monotonic()
    # Without --wait-for-lock, parallel stages fail with "Unable to acquire lock", some after finishing their work.
    arguments = ["--wait-for-lock", "repro", "--single-item"] + ["--force"] * stage.force + [stage.name]
    begun = repro.begin(arguments, root, environment(env), GRACE_SECONDS, stage.timeout or 0, lifeline)
    lines: deque[str] = deque(maxlen=100)
    with open(begun.output, encoding="utf-8", errors="replace") as output, open(begun.code) as code:
        for line in map(str.rstrip, output):
            if line:
                lines.append(line)
                emit(line)
        status = int(code.read() or 128 + signal.SIGKILL)
    return outcome(stage, status, list(lines), time.monotonic() - started)


def environment(extra: dict[str, str]) -> dict[str, str]:
    """This process's environment and ``extra``; `python` in a stage's command is this interpreter."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1", **extra}


def outcome(stage: Stage, code: int, lines: list[str], seconds: float) -> Outcome:
    """What exit code ``code`` of the supervisor and the last ``lines`` mean.

    DVC turns every failure into 255 and prints the command's own exit code.
    """
    own = [line for line in lines if not is_chatter(line) and not line.startswith("> ")]
    tail = tuple(own[-5:])
    if code == 0:
        cached = any(CACHED.search(line) for line in lines)
        return Outcome("Cached" if cached else "Completed", "unchanged" if cached else "", seconds, tail)
    if code == STOPPED:
        return Outcome("Cancelled", "interrupted", seconds, tail)
    if code == TIMED_OUT:
        return Outcome("TimedOut", f"stopped after its timeout of {stage.timeout:g} s", seconds, tail)
    exits = [int(match[1]) for line in lines if (match := EXITED.search(line))]
    if not exits:
        return Outcome("Failed", f"dvc exited with {code}", seconds, tail)
    if exits[-1] == EXIT_PREEMPTED:
        return Outcome("Preempted", "preempted; its checkpoint is kept", seconds, tail)
    return Outcome("Failed", _explain_exit(exits[-1]), seconds, tail)


def is_chatter(line: str) -> bool:
    """Whether a line is DVC's advice to somebody who runs it by hand."""
    return bool(CHATTER.match(line))


def _explain_exit(code: int) -> str:
    number = -code if code < 0 else code - 128  # a shell reports signal n as 128 + n
    if number == signal.SIGKILL:
        return "killed (SIGKILL); the usual reason is that the machine ran out of memory"
    if number in signal.valid_signals():
        return f"killed by {signal.Signals(number).name}"
    return f"exited with {code}"
