"""`dvc repro --single-item` without DVC's start: each is a fork of one process that has DVC imported.

The start takes 0.6 s, eleven times in a pipeline. The process, ``python -m flows.repro CHANNEL``, is asked over a
Unix socket, and ends when the process that asks has ended.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from flows.supervise import answer_interrupts, supervise

HOUSE = Path(__file__).resolve().parents[1]
ASKING = threading.Lock()
_channel: socket.socket | None = None


class Begun(NamedTuple):
    """File descriptors to read from, the caller's to close."""

    output: int  # what it says, stderr too, to its end
    code: int  # then, in decimal, what :func:`flows.supervise.supervise` returned; nothing if that was killed


def begin(arguments: list[str], root: Path, env: dict[str, str], grace: float, timeout: float, lifeline: int) -> Begun:
    """Start ``dvc arguments`` in the folder ``root`` with the environment ``env``, supervised: it is stopped when
    the pipe ``lifeline`` is at its end, or after ``timeout`` seconds (0: no limit)."""
    request = os.memfd_create("request")
    asked = {"arguments": arguments, "root": str(root), "env": env, "grace": grace, "timeout": timeout}
    os.pwrite(request, json.dumps(asked).encode(), 0)
    (output, output_end), (code, code_end) = os.pipe(), os.pipe()
    fds = [request, lifeline, output_end, code_end]
    try:
        try:
            socket.send_fds(start(root), [b"."], fds)
        except OSError:  # it was killed
            socket.send_fds(start(root, again=True), [b"."], fds)
    finally:
        for fd in (request, output_end, code_end):
            os.close(fd)
    return Begun(output, code)


def start(root: Path, again: bool = False) -> socket.socket:
    """The channel to the process, which is started if it is not there yet. Does not wait until DVC is imported."""
    global _channel
    with ASKING:
        if _channel is None or again:
            _channel, its = socket.socketpair()
            command = [sys.executable, "-u", "-m", "flows.repro", str(its.fileno())]
            subprocess.Popen(
                command, cwd=root, env=importing_house(), stdin=subprocess.DEVNULL,
                pass_fds=[its.fileno()], start_new_session=True,
            )  # fmt: skip
            its.close()
        return _channel


def importing_house() -> dict[str, str]:
    """This process's environment; in it `python -m flows...` works in every folder."""
    paths = [str(HOUSE), os.environ.get("PYTHONPATH")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def serve(channel: socket.socket) -> None:
    """Fork for each request until there is nobody to ask."""
    _import_dvc()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks, so the kernel buries them
    while fds := socket.recv_fds(channel, 1, 4)[1]:
        if os.fork() == 0:
            channel.close()
            _answer(*fds)
        for fd in fds:
            os.close(fd)


def _import_dvc() -> None:
    """Import what `dvc repro` does, much of it when it is needed only."""
    import dvc.repo.open_repo
    import dvc.repo.reproduce
    import dvc.rwlock  # noqa: F401
    from dvc.cli.parser import get_main_parser
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    get_main_parser()
    with contextlib.suppress(DvcException), Repo() as repo:
        repo.index.graph  # noqa: B018 (reading dvc.yaml imports the rest)


def _answer(request: int, lifeline: int, output: int, code: int) -> None:
    """Supervise what was asked for, and end this process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    status = 1
    try:
        asked = json.loads(os.pread(request, os.fstat(request).st_size, 0))
        for fd, standard in ((lifeline, 0), (output, 1), (output, 2)):
            os.dup2(fd, standard)
        for fd in (request, lifeline, output):
            os.close(fd)
        os.environ.clear()
        os.environ.update(asked["env"])
        os.chdir(asked["root"])
        answer_interrupts()
        read, write = os.pipe()
        process = multiprocessing.get_context("fork").Process(target=_dvc, args=(asked["arguments"], code, read, write))
        process.start()
        while process.exitcode is None and os.getsid(process.pid) != process.pid:  # else a signal for it finds no group
            time.sleep(0.001)
        os.close(write)
        status = supervise(asked["grace"], asked["timeout"], process.pid, read, lambda: process.exitcode)
    finally:
        os.write(code, str(status).encode())
        os._exit(status)


def _dvc(arguments: list[str], code: int, read: int, write: int) -> None:
    from dvc.cli import main

    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    for fd, standard in ((null, 0), (write, 1), (write, 2)):
        os.dup2(fd, standard)
    for fd in (null, write, read, code):
        os.close(fd)
    sys.exit(main(arguments))


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
