"""What stops stages: a pipe that each of them is given, and that is at its end once nobody holds it any more."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flows import console
from stages.contract.starter import end_with_starter


class Lifeline:
    """``end``, a file descriptor to read from, reaches its end when the lifeline is cut, be it by the death of this
    process. ``interrupted`` is set if a signal has cut it."""

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
        """Cut it on a person's behalf, and tell."""
        if not self.interrupted.is_set():
            self.interrupted.set()
            self.cut()
            console.say_interrupted()

    def close(self) -> None:
        """Cut it, and give ``end`` back: for when no stage is left that reads from it."""
        self.cut()
        os.close(self.end)

    @contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """Meanwhile SIGINT and SIGTERM cut it instead of what they do else."""
        from prefect.runtime import deployment

        main = threading.current_thread() is threading.main_thread()
        if main and deployment.id:  # a worker's run: with the worker goes the only way to cancel it
            end_with_starter()
        before = (
            {s: signal.signal(s, lambda number, frame: self.interrupt()) for s in (signal.SIGINT, signal.SIGTERM)}
            if main
            else {}
        )
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def lifeline() -> Iterator[Lifeline]:
    """A lifeline that heeds signals, and ends with the block."""
    held = Lifeline()
    try:
        with held.heeding_signals():
            yield held
    finally:
        held.close()
