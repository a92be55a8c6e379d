"""Silence libraries that write to the terminal themselves, past Python."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quietly() -> Iterator[None]:
    """Discard everything that this process writes to its standard streams inside the block."""
    streams = (sys.stdout, sys.stderr)
    for stream in streams:
        stream.flush()
    kept, nowhere = [os.dup(fd) for fd in (1, 2)], os.open(os.devnull, os.O_WRONLY)
    try:
        for fd in (1, 2):
            os.dup2(nowhere, fd)
        yield
        for stream in streams:
            stream.flush()
    finally:
        for fd, old in zip((1, 2), kept, strict=True):
            os.dup2(old, fd)
            os.close(old)
        os.close(nowhere)
