"""Low-priority helper processes that must not slow a stage down."""

import os
import time
from pathlib import Path

ATTEMPTS = 20


def give_way(niceness: int) -> None:
    """Let other processes have this machine's cores first.

    On a core that both want, this process gets a third of another one's time with 5, a tenth with 10.

    Where Linux schedules by session (sched_autogroup_enabled, the default of most distributions), the niceness of a
    process counts in its own session only, and the session has one too, see sched(7). Only the leader of a session
    sets that: one that was typed into a terminal would slow down everything in the terminal.
    """
    os.nice(niceness)
    if os.getsid(0) != os.getpid():
        return
    for _ in range(ATTEMPTS):
        try:
            Path("/proc/self/autogroup").write_text(str(niceness))
            return
        except BlockingIOError:  # the kernel takes ten a second, of all who are not root together
            time.sleep(0.1)
        except OSError:  # not this system
            return
