"""Prefect's server for the length of a process."""

import os
import stat

import httpx
import psutil
import pytest

from flows.servers import temporary
from flows.servers.connection import connected
from flows.servers.door import basic
from flows.servers.login import login
from stages.contract.errors import UserError
from stages.contract.process.loopback import without_proxy
from tests.flows.conftest import wait_for

# What the shell of somebody who runs a team's server, behind a company's proxy, may hold.
ELSEWHERE = {
    "PREFECT_SERVER_API_AUTH_STRING": "admin:pass",
    "PREFECT_SERVER_API_BASE_PATH": "/prefect",
    "PREFECT_API_KEY": "pnu_123",
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "ALL_PROXY": "http://127.0.0.1:9",
}


def test_temporary_server_asks_for_the_login_until_it_ends(home, monkeypatch, tmp_path):
    from prefect.client.orchestration import get_client

    for name, value in ELSEWHERE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PREFECT_HOME", str(home))
    server = temporary.start_server(tmp_path)
    url = server.url
    assert stat.S_IMODE((tmp_path / "login").stat().st_mode) == 0o600
    assert server.login == login(tmp_path) != login(tmp_path / "other")
    assert status(f"{url}/flows/name/x") == 401
    assert status(f"{url}/flows/name/x", Authorization=basic("admin:pass")) == 401
    assert status(f"{url}/flows/name/x", Authorization=basic(login(tmp_path))) == 404
    assert status(f"{url}/health", Host="evil.example") == 403
    assert status(f"{url}/health", Origin="http://evil.example") == 403
    without_proxy(os.environ)
    with connected(url, server.login), get_client(sync_client=True) as client:
        assert client.hello().status_code == 200
        client.read_flows()
    for process in psutil.Process(server.process.pid).children(recursive=True):
        assert login(tmp_path).partition(":")[2] not in " ".join(process.cmdline())
    temporary.end()
    wait_for(lambda: server.process.poll() is not None)
    assert not temporary.server_answers(url, timeout=5)
    assert not temporary.is_temporary(url)


@pytest.mark.parametrize("wrapped", [False, True])
def test_server_that_is_lost_in_a_run_is_one_line(wrapped):
    def ask():
        raise httpx.ReadError("connection\nreset by http://joe:pL4nt@h")

    def ask_first():
        try:
            ask()
        except httpx.HTTPError as e:  # as Prefect's client does with its first request
            raise RuntimeError("Failed to reach API") from e

    with pytest.raises(UserError) as refusal, connected("http://joe:pL4nt@h/api"):
        ask_first() if wrapped else ask()
    assert str(refusal.value).startswith("no Prefect server answers at http://h/api.")
    assert "pL4nt" not in str(refusal.value) and len(str(refusal.value).splitlines()) == 1


def status(url, **headers):
    """The status of the answer to a GET, with the path of ``url`` as it stands."""
    return httpx.get(url, headers=headers, timeout=180, trust_env=False, verify=False).status_code


def test_database_is_made_where_there_is_none(monkeypatch, tmp_path):
    monkeypatch.delenv("PREFECT_HOME")
    assert temporary.makes_database(tmp_path)
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql+asyncpg://h/prefect")
    assert not temporary.makes_database(tmp_path)
    monkeypatch.delenv("PREFECT_API_DATABASE_CONNECTION_URL")
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "prefect.db").touch()
    assert not temporary.makes_database(tmp_path)
