"""Stop stages: each reads a pipe whose other end closes on a signal or with this process."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flows import interrupts
from flows.supervise import GRACE_SECONDS
from stages.contract.process.lifetime import end_with_starter


class Lifeline:
    """A pipe that ends when it is cut or this process dies.

    ``end`` is the file descriptor of its read side. ``interrupted`` is set if a signal has cut it.
    """

    def __init__(self) -> None:
        self.end, self._held = os.pipe()
        self.interrupted = threading.Event()

    def is_cut(self) -> bool:
        return self._held < 0

    def cut(self) -> None:
        if not self.is_cut():
            held, self._held = self._held, -1
            os.close(held)

    def interrupt(self) -> None:
        """Cut it for a person, and print a line."""
        if not self.interrupted.is_set():
            self.interrupted.set()
            interrupts.HEARD.set()
            self.cut()
            text = f"\nInterrupted. Stopping; a running stage has {GRACE_SECONDS} s to save a checkpoint.\n"
            with contextlib.suppress(OSError):  # no stderr
                os.write(2, text.encode())  # safe in a signal handler

    def close(self) -> None:
        """Cut it and close ``end``, once no stage reads from it."""
        self.cut()
        os.close(self.end)


@contextmanager
def lifeline() -> Iterator[Lifeline]:
    """Open a lifeline that SIGINT and SIGTERM cut and that closes with the block."""
    from prefect.runtime import deployment

    held, before = Lifeline(), {}
    if threading.current_thread() is threading.main_thread():
        if deployment.id:  # a worker's run: without the worker nobody could cancel it
            end_with_starter()
        before = {s: signal.signal(s, lambda number, frame: held.interrupt()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield held
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        held.close()
