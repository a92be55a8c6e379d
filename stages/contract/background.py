"""Processes beside the stages: they have time, the stages have not."""

import os
import time
from pathlib import Path

ATTEMPTS = 20


def give_way(niceness: int) -> None:
    """Let others have this machine's cores first: with 5 this process gets a third of what they get of a core that both
    want, with 10 a tenth. For the leader of a session.

    Where Linux schedules by session (sched_autogroup_enabled, the default of most distributions), the niceness of a
    process counts in its own session only; the session has one too, see sched(7).
    """
    os.nice(niceness)
    for _ in range(ATTEMPTS):
        try:
            Path("/proc/self/autogroup").write_text(str(niceness))
            return
        except BlockingIOError:  # the kernel takes ten a second, of all who are not root together
            time.sleep(0.1)
        except OSError:  # not this system
            return
