"""End a flow's program on SIGINT and SIGTERM: one line and exit code 130, at once or within a stage's grace.

It imports almost nothing, so that it is installed before the imports that take seconds.
"""

import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | int | None

EXIT = 130
NUMBERS = (signal.SIGINT, signal.SIGTERM)
HEARD = threading.Event()  # a library may turn KeyboardInterrupt into another exception


def leave_at_once() -> None:
    """Make a signal end this process with one line. For the time in which it only imports."""
    _heed(_leave)


def run_command(module: str, function: str) -> None:
    """Import ``function`` of ``module``, which a signal ends at once, call it, and exit with its code."""
    leave_at_once()
    sys.exit(getattr(importlib.import_module(module), function)())


@contextmanager
def raised() -> Iterator[None]:
    """Make a signal raise KeyboardInterrupt in the block; a shell's background job inherits SIGINT ignored."""
    HEARD.clear()
    before, hook = _heed(_raise), sys.unraisablehook
    sys.unraisablehook = lambda unraisable: _again(unraisable, hook)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ending_in_time(seconds: float, busy: Callable[[], bool]) -> Iterator[None]:
    """End an interrupted flow within ``seconds``, or once it is no longer ``busy``.

    This holds also if Prefect waits for a lost server. Python writes every signal's number to a file descriptor,
    which a thread reads: Prefect replaces signal handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    over = threading.Event()
    numbers, written = os.pipe()
    os.set_blocking(written, False)

    def end() -> None:
        while os.read(numbers, 1) not in (b"", *(bytes([number]) for number in NUMBERS)):
            pass
        limit = time.monotonic() + seconds
        while time.monotonic() < limit and busy():
            if over.wait(0.2):
                return
        if not over.wait(1):  # for a flow that has almost ended
            os.write(2, b"\nInterrupted; Prefect's server does not answer. Finished stages are kept.\n")
            os._exit(EXIT)

    before = signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(written)
        thread.join()
        os.close(numbers)


def _heed(handler: Handler) -> dict[signal.Signals, Handler]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)
    return {number: signal.signal(number, handler) for number in NUMBERS}


def _raise(number: int, frame: FrameType | None) -> None:
    HEARD.set()
    raise KeyboardInterrupt


def _again(unraisable: "sys.UnraisableHookArgs", hook: "Callable[[sys.UnraisableHookArgs], None]") -> None:
    """Send the signal again if Python ignored its exception, which it does in a destructor."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        return hook(unraisable)
    main = threading.main_thread().ident
    threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"Interrupted.\n")
    os._exit(EXIT)
