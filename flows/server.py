"""A Prefect server for the length of this process, for those who run none.

Prefect would start one itself, but in this process's group, so that Ctrl-C ends it before the stages' states
are recorded, and only after importing the whole server here as well, which takes seconds.
"""

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, NamedTuple

from flows.repro import importing_house
from flows.stage import SUPERVISE
from stages.contract.background import give_way
from stages.contract.errors import UserError

STARTUP_SECONDS = 180  # the first start ever migrates a new database: 25 s measured on a busy two-core machine
GRACE_SECONDS = 5
_started: set[str] = set()


def temporary(url: str | None) -> bool:
    """Whether the API at ``url`` is that of a server that ends with this process."""
    return url in _started


class Begun(NamedTuple):
    """A server that may not answer yet."""

    url: str  # of its API
    process: subprocess.Popen
    lifeline: int
    log: IO


def start() -> str:
    """Start a server on a free port and return the URL of its API. It ends with this process.

    Raises:
        UserError: the server did not come up.
    """
    return ready(begin(niceness=0))


@contextmanager
def early() -> Iterator[Begun]:
    """A server that starts while the block does other work. It ends with the block if nobody called :func:`ready`."""
    begun = begin()
    try:
        yield begun
    finally:
        if not temporary(begun.url):
            os.close(begun.lifeline)


def begin(niceness: int = 5) -> Begun:
    """Start a server on a free port, which gives way to the stages. Does not wait until it answers, nor import
    Prefect."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    # The variables are those of prefect.server.api.server.SubprocessASGIServer.
    env = importing_house() | {"PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    # A lasting server has pages and registers blocks, which takes a second.
    env |= {"PREFECT_UI_ENABLED": "0", "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false"}
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (the server writes to it until it ends)
    command = [sys.executable, "-m", "flows.server", str(port), str(niceness)]
    process, lifeline = supervised(command, env, log, STARTUP_SECONDS)  # not in the middle of a migration
    return Begun(f"http://127.0.0.1:{port}/api", process, lifeline, log)


def ready(begun: Begun, interrupted: threading.Event | None = None) -> str:
    """Wait until the server answers, and return the URL of its API. From then on it ends with this process.

    Raises:
        KeyboardInterrupt: ``interrupted`` was set before.
        UserError: the server did not come up.
    """
    end = time.monotonic() + STARTUP_SECONDS
    while not answers(begun.url, timeout=5):
        if begun.process.poll() is not None or time.monotonic() > end:
            begun.log.seek(0)
            last = "".join(begun.log.readlines()[-5:]).strip()
            raise UserError(f"Prefect's temporary server did not start. `dvc repro` works without it.\n{last}")
        time.sleep(0.1)
        if interrupted and interrupted.is_set():
            raise KeyboardInterrupt
    _started.add(begun.url)
    return begun.url


def supervised(
    command: list[str], env: dict[str, str], log: IO, grace: float = GRACE_SECONDS
) -> tuple[subprocess.Popen, int]:
    """Start ``command`` and return its supervisor and the file descriptor whose closing stops it, in at most ``grace``
    seconds; so does the end of this process. Its output goes to the file ``log``."""
    read, lifeline = os.pipe()
    process = subprocess.Popen(
        [sys.executable, str(SUPERVISE), str(grace), "0", *command],
        env=env, stdin=read, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    os.close(read)
    return process, lifeline


def answers(api_url: str, timeout: float) -> bool:
    """Whether an HTTP server answers at ``api_url`` within ``timeout`` seconds, with whatever status."""
    try:
        with urllib.request.urlopen(f"{api_url.rstrip('/')}/health", timeout=timeout):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def serve(port: int, niceness: int) -> None:
    """Be Prefect's server on ``port`` of the loopback until SIGINT."""
    give_way(niceness)
    import uvicorn
    from prefect.server.api.server import create_app  # SIGINT ends it at once; uvicorn heeds it after the start only

    uvicorn.run(create_app, factory=True, host="127.0.0.1", port=port, log_level="error", lifespan="on")


if __name__ == "__main__":
    serve(*map(int, sys.argv[1:]))
