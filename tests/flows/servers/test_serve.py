"""`make serve` as a whole: servers, worker and deployments are started once, and everything is asked of them."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows import serve
from flows.servers import connection
from flows.servers.settings import DATABASES, LOGINS
from stages.contract.errors import UserError
from stages.contract.process.loopback import without_proxy
from tests.flows.conftest import PATIENCE, REPOSITORY, answering, free_port, own_lines, wait_for
from tests.flows.served import ask, processes


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        (None, None, 200),
        ("Host", "evil.example", 403),
        ("Host", "192.168.0.1:5000", 403),
        ("Host", "127.0.0.1", 403),  # another port's
        ("Origin", "http://evil.example", 403),
        ("Origin", "http://localhost:1", 403),
        ("Origin", "null", 403),
        ("Sec-Fetch-Site", "same-site", 403),
        ("Authorization", "Basic dmVyZGljdDp3cm9uZw==", 401),
        ("Authorization", "Bearer x", 401),
        ("Authorization", "", 401),
    ],
)
def test_only_own_host_own_pages_and_the_login_pass(served, header, value, status):
    headers = {header: value} if header else {}
    for url in (f"{served.prefect}/api/admin/version", f"{served.mlflow}/{EXPERIMENTS}", f"{served.mlflow}/version"):
        assert ask(url, served.login, **headers)[0] == status, url
    if status == 403:  # before anything is asked, a probe or a page of Prefect's neither
        assert [ask(f"{served.prefect}/{path}", **headers)[0] for path in ("api/health", "", "docs")] == [403] * 3


def test_prefect_refuses_a_post_without_login_or_csrf_token(served):
    url, body = f"{served.prefect}/api/flows/", b'{"name": "evil"}'
    assert ask(url, body=body)[0] == 401
    assert ask(url, served.login, body=body) == (403, '{"detail":"Missing CSRF token."}')
    assert not [flow for flow in served.api("/flows/filter", {}) if flow["name"] == "evil"]


def test_login_is_kept_closed_and_in_no_command_line_or_log(served):
    secret = served.login.partition(":")[2]
    home = served.root / ".verdict"
    assert stat.S_IMODE((home / "login").stat().st_mode) == 0o600
    assert [path for path in home.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()] == [
        home / "login"
    ]
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes(served.marker)]
    assert len(commands) >= 3 and not [command for command in commands if secret.encode() in command]
    shell = f". {home}/serve.env; echo $PREFECT_API_URL $PREFECT_API_AUTH_STRING $MLFLOW_TRACKING_URI"
    shell += " $MLFLOW_TRACKING_USERNAME:$MLFLOW_TRACKING_PASSWORD"
    said = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout
    assert said == f"{served.prefect}/api {served.login} {served.mlflow} {served.login}\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"API_AUTH_STRING": None}, "asks for a login: set PREFECT_API_AUTH_STRING to user:password."),
        ({"API_AUTH_STRING": "admin:no"}, "refuses PREFECT_API_AUTH_STRING (401 Unauthorized): a wrong login."),
        ({"API_AUTH_STRING": None, "API_KEY": "pnu_1"}, "refuses PREFECT_API_KEY (401 Unauthorized): a wrong key"),
        ({"CLIENT_CSRF_SUPPORT_ENABLED": False}, "asks for CSRF tokens: set PREFECT_CLIENT_CSRF_SUPPORT_ENABLED=true."),
        ({"API_URL": "{prefect}"}, "answers 404 Not Found. Is PREFECT_API_URL right? It ends in /api."),
        ({"API_URL": "{pages}"}, "the server there is not Prefect's API,"),
        ({"API_URL": "ftp://joe:pL4nt@127.0.0.1/api"}, "no Prefect server answers at ftp://127.0.0.1/api."),
        ({"API_URL": "http://127.0.0.1:1/api"}, "no Prefect server answers at http://127.0.0.1:1/api."),
    ],
)
def test_server_that_cannot_be_used_is_one_line(served, pages, given, message):
    given = {
        name: value.format(pages=pages, prefect=served.prefect) if isinstance(value, str) else value
        for name, value in given.items()
    }
    with client_settings(served, given) as url, pytest.raises(UserError) as refusal:
        connection.check_server(url)
    text = str(refusal.value)
    assert message in text and "\n" not in text and "pL4nt" not in text


def test_server_of_this_machine_is_reached_without_the_proxy(served, monkeypatch):
    for name in ("http_proxy", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    without_proxy(os.environ)
    with client_settings(served, {}) as url:
        connection.check_server(url)


@pytest.fixture(scope="module")
def pages():
    """The address of a server of web pages."""

    with answering([200], b"<html>Welcome</html>") as (port, _):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def client_settings(served, given):
    """Prefect's settings of a client of ``served``, and ``given``; the URL."""
    from prefect import settings

    known = {"API_URL": f"{served.prefect}/api", "API_AUTH_STRING": served.login} | given
    with settings.temporary_settings({getattr(settings, f"PREFECT_{name}"): value for name, value in known.items()}):
        yield known["API_URL"]


def test_serves_cancels_alerts_of_a_crash_and_ends_clean(served, webhook):
    assert json.loads(ask(f"{served.mlflow}/{EXPERIMENTS}", served.login)[1])["experiments"]
    assert served.api("/concurrency_limits/tag/gpu")["concurrency_limit"] == 1
    assert served.api("/work_pools/verdict")["type"] == "process"
    assert served.api("/deployments/name/pipeline/pipeline")["global_concurrency_limit"]["limit"] == 1
    nights = {"deployments": {"name": {"any_": ["nightly"]}}, "flow_runs": {"state": {"name": {"any_": ["Scheduled"]}}}}
    assert wait_for(lambda: served.api("/flow_runs/filter", nights))

    emit = [sys.executable, "-m", "prefect", "event", "emit", "verdict.data.arrived", "--resource-id", "inbox"]
    subprocess.run(emit, env=served.clients(), check=True, capture_output=True)
    (run,) = wait_for(lambda: [r for r in served.api("/flow_runs/filter", {}) if by_automation(r)])
    assert served.ended(run["id"])["message"].endswith("toy has no commit yet. Commit the pipeline first.")
    alert = wait_for(lambda: webhook.alerts)[0]
    assert (alert["flow"], alert["run"], alert["event"]) == ("retrain", run["name"], "failed")
    webhook.alerts.clear()

    run, trainer = served.run("train")
    served.api(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    served.saved(trainer)
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
    _, err = served.process.communicate(timeout=PATIENCE)
    assert (served.process.returncode, own_lines(err)) == (0, [])
    assert processes(served.marker) == []


def by_automation(run):
    return run["created_by"] and run["created_by"]["type"] == "AUTOMATION"


EXPERIMENTS = "api/2.0/mlflow/experiments/search?max_results=9"


@pytest.mark.parametrize("missing", [*DATABASES, *LOGINS])
def test_team_without_a_setting_is_one_line(monkeypatch, capsys, tmp_path, missing):
    monkeypatch.chdir(tmp_path)
    for name, example in (DATABASES | LOGINS).items():
        monkeypatch.setenv(name, example)
    monkeypatch.delenv(missing)
    ports = ["--prefect-port", str(free_port()), "--mlflow-port", str(free_port())]
    assert serve.main(["--team", *ports]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {missing} ") and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--host and --name are of serve-team"),
        (["--name", "verdict.example.org"], "--host and --name are of serve-team"),
        (["--team", "--host", "0.0.0.0"], "--host 0.0.0.0 needs --name"),
    ],
)
def test_other_addresses_than_loopback_are_a_teams(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert serve.main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}") and len(err.splitlines()) == 1


def test_team_whose_database_is_not_there_sees_no_password(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, example in (DATABASES | LOGINS).items():
        monkeypatch.setenv(name, example.replace("password", "pL4nt-ed").replace("host", "127.0.0.1:1"))
    ports = ["--prefect-port", str(free_port()), "--mlflow-port", str(free_port())]
    assert serve.main(["--team", *ports]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("error: prefect does not answer or has ended") and len(err.splitlines()) == 1
    logs = "".join(path.read_text() for path in (tmp_path / ".verdict").glob("*.log"))
    assert logs and "pL4nt" not in out + err + logs


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
