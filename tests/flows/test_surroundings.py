"""What flows make of a company's machine: no home, no name, a shared /var/tmp."""

import getpass
import os
import stat

import pytest

from flows.surroundings import settle_surroundings

CACHES = "XDG_CACHE_HOME", "MPLCONFIGDIR", "no_proxy", "NO_PROXY"


@pytest.fixture
def clone(tmp_path, monkeypatch):
    (tmp_path / ".dvc").mkdir()
    for name in ("PREFECT_HOME", "DVC_SITE_CACHE_DIR", "VERDICT_HOME", "LOGNAME", *CACHES):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return tmp_path


@pytest.mark.parametrize("home", ["/proc", "/dev/null", None])
def test_prefect_keeps_in_the_clone_what_home_cannot_hold(clone, monkeypatch, home):
    monkeypatch.setenv("HOME", home or "")
    if home is None:
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pathlib.Path.home", no_entry)
    settle_surroundings(clone)
    assert os.environ["PREFECT_HOME"] == str(clone / ".verdict" / "prefect")
    assert os.environ["XDG_CACHE_HOME"] == str(clone / ".verdict" / "cache")


def test_home_that_can_be_written_stays_prefects(clone, monkeypatch):
    monkeypatch.setenv("HOME", str(clone))
    settle_surroundings(clone)
    assert "PREFECT_HOME" not in os.environ


def test_only_the_owner_writes_dvcs_index(clone, monkeypatch):
    settle_surroundings(clone)
    folder = clone / ".dvc" / "tmp" / f"site-{os.getuid()}"
    assert os.environ["DVC_SITE_CACHE_DIR"] == str(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", "/chosen")
    settle_surroundings(clone)
    assert os.environ["DVC_SITE_CACHE_DIR"] == "/chosen"


def test_folder_that_is_no_clone_is_left_alone(clone):
    (clone / "elsewhere").mkdir()
    settle_surroundings(clone / "elsewhere")
    assert "DVC_SITE_CACHE_DIR" not in os.environ
    assert not list((clone / "elsewhere").iterdir())


def test_user_without_an_entry_gets_a_name(clone, monkeypatch):
    for name in ("USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", no_entry)
    settle_surroundings(clone)
    assert getpass.getuser() == f"user-{os.getuid()}"


def no_entry(*_):
    raise KeyError("getpwuid(): uid not found")
