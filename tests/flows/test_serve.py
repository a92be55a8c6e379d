"""`make serve` as a whole: servers, worker and deployments are started once, and everything is asked of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows import serve
from tests.flows.conftest import REPOSITORY, alive, free_port, wait_for

TRAINER = """
stages:
  train:
    cmd: sh -c 'trap "touch ../saved; exit 75" INT; echo $$ > ../pid; while true; do sleep 0.1; done'
    deps: [data.txt]
    outs: [model.txt]
    meta: {resource: gpu, retries: 3}
  count:
    cmd: sh -c 'trap "touch ../saved; exit 75" INT; echo $$ > ../pid; while true; do sleep 0.1; done'
    deps: [data.txt]
    outs: [count.txt]
"""


def processes(marker):
    """Ids of the processes that inherited ``marker`` in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if marker.encode() in path.read_bytes() and alive(int(path.parent.name)):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


class Served:
    """A repository of toy stages, with the flows of this one, and what `make serve` made of it."""

    def __init__(self, root, marker, webhook):
        self.root, self.marker = root, marker
        ports = free_port(), free_port()
        self.prefect, self.mlflow = (f"http://127.0.0.1:{port}" for port in ports)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
        env |= {"VERDICT_ALERT_WEBHOOK": webhook, "VERDICT_TEST": marker}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows.serve", "--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])],
            cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def api(self, path, body=None):
        return serve.call(f"{self.prefect}/api{path}", body)

    def run(self, stage):
        """Start the deployment `pipeline`; return its flow run's id and the stage's process id."""
        for file in ("pid", "saved"):
            (self.root.parent / file).unlink(missing_ok=True)
        deployment = self.api("/deployments/name/pipeline/pipeline")
        run = self.api(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {"stages": [stage]}})
        file = self.root.parent / "pid"
        return run["id"], int(wait_for(lambda: file.exists() and file.read_text()))

    def ended(self, run):
        """A flow run's final state."""
        final = ("CANCELLED", "FAILED", "CRASHED", "COMPLETED")
        return wait_for(lambda: (s := self.api(f"/flow_runs/{run}")["state"])["type"] in final and s)

    def saved(self, trainer):
        """Seconds until the trainer has saved and is gone."""
        started = time.monotonic()
        wait_for(lambda: not alive(trainer))
        assert (self.root.parent / "saved").exists()
        return time.monotonic() - started


@pytest.fixture
def served(make_repo, listener):
    root = make_repo(TRAINER)
    for room in ("flows", "stages"):
        (root / room).symlink_to(REPOSITORY / room)
    served = Served(root, uuid.uuid4().hex, listener.url)
    yield served
    served.process.kill()
    served.process.wait()
    wait_for(lambda: not processes(served.marker))


def test_serves_cancels_tells_of_a_crash_and_leaves_nothing_behind(served, listener):
    lines = iter(served.process.stdout.readline, "")
    assert any(line.startswith("Ready") for line in lines), served.process.stderr.read()
    with urllib.request.urlopen(
        f"{served.mlflow}/api/2.0/mlflow/experiments/search?max_results=9", timeout=30
    ) as answer:
        assert json.load(answer)["experiments"]
    assert served.api("/concurrency_limits/tag/gpu")["concurrency_limit"] == 1
    assert served.api("/work_pools/verdict")["type"] == "process"
    assert served.api("/deployments/name/pipeline/pipeline")["global_concurrency_limit"]["limit"] == 1

    run, trainer = served.run("train")
    served.api(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    assert served.saved(trainer) < 10
    assert served.ended(run)["type"] == "CANCELLED"
    assert listener.alerts == []

    run, trainer = served.run("count")  # a GPU stage's slot would be free only when its lease ends, a minute later
    flow = served.api(f"/flow_runs/{run}")["infrastructure_pid"]
    os.kill(int(flow.rpartition(":")[2]), signal.SIGKILL)
    served.saved(trainer)
    assert served.ended(run)["type"] == "CRASHED"
    alert = wait_for(lambda: listener.alerts)[0]
    assert (alert["flow"], alert["event"]) == ("pipeline", "crashed")
    assert "SIGKILL" in alert["reason"]
    assert alert["url"].startswith(served.prefect) and run in alert["url"]

    run, trainer = served.run("train")
    served.process.send_signal(signal.SIGINT)
    served.saved(trainer)
    _, err = served.process.communicate(timeout=60)
    assert (served.process.returncode, err) == (0, "")
    assert processes(served.marker) == []


@pytest.mark.parametrize(("codes", "attempts"), [([503, 503, 200], 3), ([404], 1)])
def test_a_busy_database_is_asked_again_and_an_error_is_not(codes, attempts):
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            code = codes[len(seen)]
            seen.append(code)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(b'{"ok": true}')

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        if codes[-1] == 200:
            assert serve.call(url) == {"ok": True}
        else:
            with pytest.raises(urllib.error.HTTPError):
                serve.call(url)
        server.shutdown()
    assert len(seen) == attempts


def test_team_without_a_database_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_DATABASE_CONNECTION_URL", raising=False)
    ports = ["--prefect-port", str(free_port()), "--mlflow-port", str(free_port())]
    assert serve.main(["--team", *ports]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: PREFECT_API_DATABASE_CONNECTION_URL names no PostgreSQL database.")
    assert len(err.splitlines()) == 1


def test_taken_port_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        assert serve.main(["--prefect-port", str(free_port()), "--mlflow-port", str(port)]) == 1
    err = capsys.readouterr().err
    assert err == f"error: port {port} of 127.0.0.1: Address already in use. Choose another: --mlflow-port N.\n"


def test_every_deployment_names_the_pool_that_is_served():
    deployments = YAML(typ="safe").load((REPOSITORY / "flows" / "prefect.yaml").read_text())["deployments"]
    assert {d["name"] for d in deployments} == {"pipeline", "nightly"}
    assert all(d["work_pool"]["name"] == serve.POOL and d["concurrency_limit"]["limit"] == 1 for d in deployments)
