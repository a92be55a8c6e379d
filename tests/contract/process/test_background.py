"""A helper gives way by its own session, never by the terminal's."""

import os
from pathlib import Path

import pytest

from stages.contract.process import background


@pytest.mark.parametrize("leads", [True, False])
def test_only_the_leader_of_a_session_slows_it_down(monkeypatch, leads):
    written = []
    monkeypatch.setattr(os, "nice", lambda niceness: niceness)
    monkeypatch.setattr(os, "getsid", lambda _: os.getpid() if leads else 1)
    monkeypatch.setattr(Path, "write_text", lambda path, text: written.append((str(path), text)))
    background.give_way(10)
    assert written == ([("/proc/self/autogroup", "10")] if leads else [])
