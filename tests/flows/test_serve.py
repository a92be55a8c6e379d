"""`make serve` as a whole: servers, worker and deployments are started once, and everything is asked of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from ruamel.yaml import YAML

from flows import serve
from tests.flows.conftest import REPOSITORY, free_port, wait_for
from tests.flows.served import processes


def test_serves_cancels_tells_of_a_crash_and_leaves_nothing_behind(served, webhook):
    with urllib.request.urlopen(
        f"{served.mlflow}/api/2.0/mlflow/experiments/search?max_results=9", timeout=30
    ) as answer:
        assert json.load(answer)["experiments"]
    assert served.api("/concurrency_limits/tag/gpu")["concurrency_limit"] == 1
    assert served.api("/work_pools/verdict")["type"] == "process"
    assert served.api("/deployments/name/pipeline/pipeline")["global_concurrency_limit"]["limit"] == 1
    nights = {"deployments": {"name": {"any_": ["nightly"]}}, "flow_runs": {"state": {"name": {"any_": ["Scheduled"]}}}}
    assert wait_for(lambda: served.api("/flow_runs/filter", nights))

    emit = [sys.executable, "-m", "prefect", "event", "emit", "verdict.data.arrived", "--resource-id", "inbox"]
    env = os.environ | {"PREFECT_API_URL": f"{served.prefect}/api"}
    subprocess.run(emit, env=env, check=True, capture_output=True)
    (run,) = wait_for(lambda: [r for r in served.api("/flow_runs/filter", {}) if by_automation(r)])
    assert served.ended(run["id"])["message"].endswith("toy has no commit yet. Commit the pipeline first.")
    alert = wait_for(lambda: webhook.alerts)[0]
    assert (alert["flow"], alert["run"], alert["event"]) == ("retrain", run["name"], "failed")
    webhook.alerts.clear()

    run, trainer = served.run("train")
    served.api(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    assert served.saved(trainer) < 10
    assert served.ended(run)["type"] == "CANCELLED"
    assert webhook.alerts == []

    run, trainer = served.run("count")  # a GPU stage's slot would be free only when its lease ends, a minute later
    flow = served.api(f"/flow_runs/{run}")["infrastructure_pid"]
    os.kill(int(flow.rpartition(":")[2]), signal.SIGKILL)
    served.saved(trainer)
    assert served.ended(run)["type"] == "CRASHED"
    alert = wait_for(lambda: webhook.alerts)[0]
    assert (alert["flow"], alert["event"]) == ("pipeline", "crashed")
    assert "SIGKILL" in alert["reason"]
    assert alert["url"].startswith(served.prefect) and run in alert["url"]

    run, trainer = served.run("train")
    served.process.send_signal(signal.SIGINT)
    served.saved(trainer)
    _, err = served.process.communicate(timeout=60)
    assert (served.process.returncode, err) == (0, "")
    assert processes(served.marker) == []


def by_automation(run):
    return run["created_by"] and run["created_by"]["type"] == "AUTOMATION"


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
    assert {d["name"] for d in deployments} == {"pipeline", "nightly", "sweep"}
    assert all(d["work_pool"]["name"] == serve.POOL and d["concurrency_limit"]["limit"] == 1 for d in deployments)
