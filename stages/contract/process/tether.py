"""The connection of a worker on another machine to the stage that started it, whatever engine did so.

Signals go to the worker and its exit code comes back. A worker whose stage has ended kills itself, as on one machine
(`worker.die_with_parent`), and a worker that ended without a code is lost. TCP's probes end the connection where a
whole machine is gone. Not for tensors: they go by torch's process groups.
"""

import contextlib
import os
import secrets
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable

from stages.contract.errors import UserError

TOKEN_BYTES, RANK_DIGITS, CODE_DIGITS = 16, 8, 4  # of what a worker sends: its token and rank, then its exit code
HELLO_SECONDS = 5.0  # for a connection that says nothing
START_SECONDS = 180.0  # for all workers to connect: Python on a slow file system takes a minute
SILENT_SECONDS = 25  # until a machine that does not answer is lost: after 10 seconds, probes every 5
LOST = -signal.SIGKILL


class NotStarted(UserError):
    """A worker did not start."""


class TetheredWorker:
    """A worker elsewhere, with the part of `subprocess.Popen` that a launcher needs."""

    def __init__(self, rank: int, receive: Callable[[], None]) -> None:
        self.rank, self._receive = rank, receive
        self.returncode: int | None = None
        self.connection: socket.socket | None = None
        self.unsent = b""  # signals that came before it connected

    def poll(self) -> int | None:
        """Return the exit code, LOST for a worker that ended without one, None while it runs."""
        if self.returncode is None:
            self._receive()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Signal the worker, or keep the signal until it connects."""
        if self.connection is None:
            self.unsent += bytes([number])
        elif self.returncode is None:
            with contextlib.suppress(OSError):
                self.connection.send(bytes([number]))

    def kill(self) -> None:
        """Kill the worker and do not wait for it: its machine may be gone."""
        self.send_signal(signal.SIGKILL)
        self.returncode = LOST if self.returncode is None else self.returncode

    def wait(self) -> int:
        """Return the exit code of a worker that has ended or was killed."""
        return LOST if self.returncode is None else self.returncode


class Tethers:
    """A stage's ends of the connections to ``count`` workers.

    Args:
        count: workers, by rank.
        ended: returns why the engine that starts them has ended, "" while it has not.
    """

    def __init__(self, count: int, ended: Callable[[], str]) -> None:
        self.token, self._ended = secrets.token_hex(TOKEN_BYTES), ended
        self.workers = [TetheredWorker(rank, self._receive) for rank in range(count)]
        self._deadline = time.monotonic() + START_SECONDS
        self._server = socket.create_server(("", 0), backlog=count)
        self._server.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)

    @property
    def address(self) -> str:
        """Port and token; a worker's VERDICT_WORKER_PARENT is HOST:PORT:TOKEN."""
        return f"{self._server.getsockname()[1]}:{self.token}"

    def close(self) -> None:
        """End all workers that still run."""
        for worker in self.workers:
            worker.returncode = worker.wait()
            if worker.connection:
                worker.connection.close()
        self._selector.close()
        self._server.close()

    def _receive(self) -> None:
        """Take what the workers sent; raise NotStarted if one did not start."""
        ended = self._ended()  # before reading: what the workers sent before that is there
        for key, _ in self._selector.select(0):
            if isinstance(key.data, TetheredWorker):
                self._read(key.data)
            else:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        self._accept()
        missing = [worker.rank for worker in self.workers if worker.connection is None]
        if missing and (ended or time.monotonic() > self._deadline):
            raise NotStarted(
                f"worker {missing[0]} of {len(self.workers)} did not start: "
                f"{ended or f'it did not connect within {START_SECONDS:.0f} s'}. Every machine must have this "
                "repository and this Python at the same paths, and must reach this machine's ports."
            )

    def _accept(self) -> None:
        connection, _ = self._server.accept()
        connection.settimeout(HELLO_SECONDS)
        try:
            hello = connection.recv(2 * TOKEN_BYTES + RANK_DIGITS, socket.MSG_WAITALL)
            worker = self.workers[int(hello[2 * TOKEN_BYTES :])]
            if not secrets.compare_digest(hello[: 2 * TOKEN_BYTES], self.token.encode()) or worker.connection:
                raise ValueError
        except (OSError, ValueError, IndexError):  # not one of the workers
            connection.close()
            return
        _probe(connection)
        worker.connection = connection
        if worker.unsent:
            connection.send(worker.unsent)
        self._selector.register(connection, selectors.EVENT_READ, worker)

    def _read(self, worker: TetheredWorker) -> None:
        """Take a worker's exit code, or the end of its connection."""
        assert worker.connection is not None
        try:
            code = worker.connection.recv(CODE_DIGITS, socket.MSG_WAITALL)
        except OSError:
            code = b""
        self._selector.unregister(worker.connection)
        if worker.returncode is None:
            worker.returncode = int(code) if code.isdigit() else LOST


_own: socket.socket | None = None  # of this process, if it is a worker on another machine


def tie(address: str, rank: int) -> None:
    """Connect this worker to its stage at HOST:PORT:TOKEN; from now on it gets the stage's signals and ends with it."""
    global _own
    host, port, token = address.rsplit(":", 2)
    _own = socket.create_connection((host, int(port)), START_SECONDS)
    _own.settimeout(None)
    _probe(_own)
    _own.sendall(f"{token}{rank:0{RANK_DIGITS}}".encode())
    threading.Thread(target=_obey, args=(_own,), name="tether", daemon=True).start()


def send_code(code: int) -> bool:
    """Send the exit code of this worker to its stage; return whether it has a tether for that."""
    if _own is not None:
        with contextlib.suppress(OSError):
            _own.sendall(f"{code:0{CODE_DIGITS}}".encode())
    return _own is not None


def _obey(connection: socket.socket) -> None:
    """Send this process the signals that come; kill it when its stage has ended, whose lock is free then."""
    with contextlib.suppress(OSError):
        while numbers := connection.recv(16):
            for number in numbers:
                os.kill(os.getpid(), number)
    os.kill(os.getpid(), signal.SIGKILL)


def _probe(connection: socket.socket) -> None:
    """Let the kernel end ``connection`` if the other machine does not answer for SILENT_SECONDS, see tcp(7)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 1000 * SILENT_SECONDS,
    }  # fmt: skip
    for name, value in options.items():
        if hasattr(socket, name):  # Linux has them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
