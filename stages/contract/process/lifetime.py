"""Watch the process that started this stage: `dvc`, or the shell somebody typed into."""

import os
import select
import signal
import threading
import time
from pathlib import Path

SHELLS = ("sh", "dash", "ash", "bash", "zsh", "ksh", "fish")


def starter() -> int:
    """Return the nearest ancestor that is not a shell running one command.

    DVC runs commands by `$SHELL -c`, or `sh -c` where SHELL is not set (cron, CI, containers): bash replaces
    itself by the command, dash stays between, one a stage, and does not die with DVC.
    """
    pid = os.getppid()
    while _runs_one_command(pid):
        pid = int(_stat(pid)[1])
    return pid


def started(pid: int) -> str:
    """Return when a process started, in clock ticks since boot, "" if it has ended: a bare id is used again."""
    try:
        stat = _stat(pid)
    except OSError:
        return ""
    return "" if stat[0] == "Z" else stat[19]  # in a container nobody may ever bury it


def age() -> float:
    """Return the seconds since this process started, its imports included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(started(os.getpid())) / os.sysconf("SC_CLK_TCK")


def end_with_starter() -> None:
    """Get SIGINT when the starter ends.

    A killed `dvc` orphans its command, which would go on writing while a second run starts (measured). The end of a
    shell does not count: SIGHUP reports it, and nohup holds that back.

    SIGINT is unblocked for that: a shell starts background jobs with it ignored, a starter may have it blocked, and
    Python leaves both as they are.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    pid = starter()
    if _shell(_arguments(pid)) or not hasattr(os, "pidfd_open"):  # Linux has it
        return
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        raise KeyboardInterrupt from None
    except OSError:  # a kernel before 5.3
        return
    main = threading.main_thread().ident
    assert main is not None

    def wait() -> None:
        select.select([process], [], [])
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=wait, name="starter", daemon=True).start()


def _runs_one_command(pid: int) -> bool:
    arguments = _arguments(pid)
    return _shell(arguments) and "-c" in arguments[1:2]


def _shell(arguments: list[str]) -> bool:
    return Path(arguments[0]).name.removeprefix("-") in SHELLS  # a login shell is "-bash"


def _arguments(pid: int) -> list[str]:
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
    except OSError:
        return [""]


def _stat(pid: int) -> list[str]:
    """Return /proc/<pid>/stat from the state on: [0] state, [1] parent, [19] start (proc_pid_stat(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
