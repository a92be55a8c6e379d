import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flows import cli, server

REPOSITORY = Path(__file__).resolve().parents[2]

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
    meta: {resource: gpu, retries: 2, timeout: 60}
  report:
    cmd: sh -c 'cat lines.txt upper.txt > report.txt'
    deps: [lines.txt, upper.txt]
    outs: [report.txt]
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("VERDICT_TRACKING", "off")


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """Prefect's folder for these tests; the person's own is left alone."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="session")
def api(home):
    """The URL of a lasting Prefect server's API."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home))
        for name, value in cli.PREFECT_DEFAULTS.items():
            patch.setenv(name, value)
        return server.start()


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


def wait_for(condition, seconds: float = 180.0):
    """The first true value of ``condition()``; fails after ``seconds``."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return value


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


class Listener:
    """An HTTP server on loopback that keeps the JSON it is sent."""

    def __init__(self):
        self.alerts = alerts = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                alerts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


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


@pytest.fixture(scope="session")
def _serve(tmp_path_factory, webhook):
    """A function to what `make serve` made of a toy repository: started once, and again if a test has stopped it."""
    from tests.flows.served import TRAINER, Served  # which imports this module

    root = _make_repo(tmp_path_factory.mktemp("served") / "toy", TRAINER)
    for room in ("flows", "stages"):
        (root / room).symlink_to(REPOSITORY / room)
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
