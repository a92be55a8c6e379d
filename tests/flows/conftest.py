import contextlib
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prefect.events.worker import EventsWorker
from prefect.logging.configuration import setup_logging

from flows.servers import temporary
from flows.surroundings import PREFECT_DEFAULTS
from tests.homes import keep, seed

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 180.0  # seconds for what takes one on an idle machine
RECORD = re.compile(r"\d\d:\d\d:\d\d\.\d+ \| ")  # the start of a record of Prefect's log
TRACEBACK = re.compile(r"\s|Traceback |During handling |The above exception |[\w.]+(Error|Exception)\b|$")

# Prefect's console handler keeps the stderr it finds: the session's, not the one that pytest closes with a test.
# Records of other libraries are not for it.
setup_logging()
logging.getLogger().handlers.clear()

# `lines` reads `seed` and ignores it: with another seed it runs again, writes the same bytes, and so `report`,
# planned after it, has nothing to do.
TOY = """
stages:
  copy:
    cmd: sh -c 'echo copying; cat data.txt > copy.txt'
    deps: [data.txt]
    outs: [copy.txt]
  lines:
    cmd: sh -c 'wc -l < copy.txt > lines.txt'
    deps: [copy.txt]
    params: [seed]
    outs: [lines.txt]
  upper:
    cmd: sh -c 'tr a-z A-Z < copy.txt > upper.txt'
    deps: [copy.txt]
    params: [eval.limit]
    outs: [upper.txt]
    meta: {resource: gpu, retries: 2, timeout: 600}
  report:
    cmd: sh -c 'cat lines.txt upper.txt > report.txt'
    deps: [lines.txt, upper.txt]
    outs: [report.txt]
"""


@pytest.fixture(scope="session")
def _temporary_home(tmp_path_factory):
    """The folder of the temporary servers of flows in this process."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(autouse=True)
def _environment(monkeypatch, _temporary_home, tmp_path_factory):
    monkeypatch.setenv("PREFECT_HOME", str(seed(_temporary_home, tmp_path_factory)))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("VERDICT_TRACKING", "off")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", "")  # what a flow in this process settles ends with the test
    monkeypatch.delenv("DVC_SITE_CACHE_DIR")
    yield
    EventsWorker.drain_all(timeout=10, at_exit=False)  # its connection is to the server that this test used
    temporary.end()


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """Prefect's folder for these tests; the person's own is left alone."""
    return seed(tmp_path_factory.mktemp("prefect"), tmp_path_factory)


@pytest.fixture(scope="package")
def api(home, tmp_path_factory):
    """The URL of a lasting Prefect server's API, which asks for no login.

    It ends with the last test of a flow: idle, it takes a twentieth of a core.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    env = os.environ | PREFECT_DEFAULTS | {"PREFECT_HOME": str(home), "PREFECT__SERVER_EPHEMERAL": "1"}
    command = ["uvicorn", "--factory", "prefect.server.api.server:create_app", "--port", str(port)]
    with open(home / "server.log", "w") as log:
        _, lifeline = temporary.supervised([sys.executable, "-m", *command], env, log)
    wait_for(lambda: temporary.server_answers(url, timeout=5))
    keep(home, tmp_path_factory)
    yield url
    os.close(lifeline)


@pytest.fixture
def make_repo(tmp_path):
    """A function from the text of a dvc.yaml to a git and DVC repository with it, a valid params.yaml and data.txt."""
    return lambda dvc_yaml, name="toy": _make_repo(tmp_path / name, dvc_yaml)


@pytest.fixture
def repo(tmp_path):
    """The toy repository; nothing has run yet."""
    return _make_repo(tmp_path / "toy", TOY)


@pytest.fixture
def built(tmp_path, _built):
    """The toy repository with everything up to date."""
    return Path(shutil.copytree(_built, tmp_path / "toy", symlinks=True))


@pytest.fixture(scope="session")
def _built(tmp_path_factory):
    root = _make_repo(tmp_path_factory.mktemp("built") / "toy", TOY)
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=root, check=True)
    return root


def _make_repo(root: Path, dvc_yaml: str) -> Path:
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    (root / ".dvc" / "tmp").mkdir(parents=True)
    (root / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    (root / "dvc.yaml").write_text(dvc_yaml)
    shutil.copy(REPOSITORY / "params.yaml", root)
    (root / "data.txt").write_text("a\nb\n")
    return root


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def wait_for(condition, seconds: float = PATIENCE):
    """The first true value of ``condition()``; fails after ``seconds``."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return value


def own_lines(err: str) -> list[str]:
    """The lines of ``err`` that are not of Prefect's log: its services may log at any time on a busy machine."""
    lines, theirs = [], False
    for line in err.splitlines():
        theirs = bool(RECORD.match(line)) or (theirs and bool(TRACEBACK.match(line)))
        lines += [] if theirs else [line]
    return lines


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def answering(codes: list[int], body: bytes) -> Iterator[tuple[int, list[int]]]:
    """An HTTP server on loopback that answers GETs with ``codes`` in turn, at last with the last, and ``body``.

    Yields its port and the codes it has answered with.
    """
    seen: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(codes[min(len(seen), len(codes) - 1)])
            self.send_response(seen[-1])
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, seen
        server.shutdown()


class Listener:
    """A webhook on loopback that keeps the alerts it is sent, in their parts."""

    def __init__(self):
        self.alerts = alerts = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                alerts.append(parsed(sent["title"], sent["message"]))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"json://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def parsed(title: str, message: str) -> dict:
    """The parts of an alert: "FLOW RUN: EVENT[ in STAGE]"; the reason, lines, an empty one, "URL  (on HOST)"."""
    whose, _, what = title.partition(": ")
    flow, _, run = whose.partition(" ")
    event, _, stage = what.partition(" in ")
    reason, *lines, _, place = message.splitlines()
    url = place.partition("  (on ")[0]
    return {"flow": flow, "run": run, "event": event, "stage": stage, "reason": reason, "lines": lines, "url": url}


@pytest.fixture
def listener():
    listener = Listener()
    yield listener
    listener.server.shutdown()
    listener.server.server_close()


@pytest.fixture(scope="session")
def webhook():
    """What hears the alerts of `served`."""
    return Listener()


@pytest.fixture(scope="package")
def _serve(tmp_path_factory, webhook):
    """A function to what `make serve` made of a toy repository: started once, and again if a test has stopped it."""
    from tests.flows.served import TRAINER, Served  # which imports this module

    root = _make_repo(tmp_path_factory.mktemp("served") / "toy", TRAINER)
    for room in ("flows", "stages"):
        (root / room).symlink_to(REPOSITORY / room)
    seed(root / ".verdict" / "prefect", tmp_path_factory)
    started = []

    def serve():
        if not started or started[-1].process.poll() is not None:
            started.append(Served(root, uuid.uuid4().hex, webhook.url, VERDICT_TRACKING="off"))
            lines = iter(started[-1].process.stdout.readline, "")
            assert any(line.startswith("Ready") for line in lines), started[-1].process.stderr.read()
        return started[-1]

    yield serve
    for served in started:
        served.end()


@pytest.fixture
def served(_serve):
    """`make serve`, ready."""
    return _serve()
