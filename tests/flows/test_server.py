"""Prefect's server for the length of a process."""

import pytest

from flows import server
from stages.contract.errors import UserError


def test_what_nobody_waits_for_ends_with_its_block(home, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(home))
    with pytest.raises(UserError, match="no pipeline"), server.early() as begun:
        assert begun.process.poll() is None
        raise UserError("no pipeline")
    begun.process.wait(timeout=2 * server.GRACE_SECONDS)
    assert not server.answers(begun.url, timeout=1)
    assert not server.temporary(begun.url)


def test_what_answers_outlives_its_block(home, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(home))
    with server.early() as begun:
        url = server.ready(begun)
    assert server.temporary(url)
    assert server.answers(url, timeout=5)


def test_a_server_that_cannot_start_is_told_with_its_last_lines(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "sqlite+aiosqlite:////nowhere/prefect.db")
    with pytest.raises(UserError, match=r"did not start. `dvc repro` works without it.\n.+"), server.early() as begun:
        server.ready(begun)
