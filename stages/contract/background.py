"""Processes beside the stages: they have time, the stages have not."""

import contextlib
import os
from pathlib import Path


def give_way(niceness: int) -> None:
    """Let others have this machine's cores first: with 5 this process gets a third of what they get of a core that both
    want, with 10 a tenth. For the leader of a session.

    Where Linux schedules by session (sched_autogroup_enabled, the default of most distributions), the niceness of a
    process counts in its own session only; the session has one too, see sched(7).
    """
    os.nice(niceness)
    with contextlib.suppress(OSError):  # not this system
        Path("/proc/self/autogroup").write_text(str(niceness))
