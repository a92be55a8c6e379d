"""Prepare the environment variables of flows: no proxy to this machine, a writable home, caches of this user alone.

Not for a stage's own settings: a bare `dvc repro` runs without this module.
"""

import contextlib
import getpass
import os
import sys
from pathlib import Path

from stages.contract.process.loopback import without_proxy
from stages.contract.tracking import locations

CODE_ROOT = Path(__file__).resolve().parents[1]
PREFECT_DEFAULTS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",  # the terminal shows the stages' lines
}


def environment(extra: dict[str, str]) -> dict[str, str]:
    """Return the environment of a child process: this one's and ``extra``; `python` is this interpreter."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1", **extra}


def settle_surroundings(root: Path) -> None:
    """Complete the environment of this process and its children for the repository at ``root``."""
    without_proxy()
    _name_user()
    if "PREFECT_HOME" not in os.environ and not _prefect_has_home():
        os.environ["PREFECT_HOME"] = str(verdict_folder(root) / "prefect")
        cache = verdict_folder(root) / "cache"  # of numba, Hugging Face and others
        os.environ.setdefault("XDG_CACHE_HOME", str(cache))
        os.environ.setdefault("MPLCONFIGDIR", str(cache / "matplotlib"))
    if "DVC_SITE_CACHE_DIR" not in os.environ and (site := _site_cache(root)):
        os.environ["DVC_SITE_CACHE_DIR"] = str(site)


def verdict_folder(root: Path) -> Path:
    """Return the folder of the servers' login, databases and logs."""
    return locations.home(root) / ".verdict"


def _name_user() -> None:
    """Set LOGNAME for a user without an entry in /etc/passwd, as in containers: DVC and torch need a name."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"user-{os.getuid()}"


def _prefect_has_home() -> bool:
    try:
        folder = Path.home() / ".prefect"
        folder.mkdir(mode=0o700, exist_ok=True)
        return os.access(folder, os.W_OK)
    except (OSError, RuntimeError, KeyError):  # no HOME and no entry in /etc/passwd
        return False


def _site_cache(root: Path) -> Path | None:
    """Return a folder for DVC's index of file hashes that only this user can write.

    DVC's default is /var/tmp/dvc, mode 0777: other users of the machine could replace files that it unpickles.
    """
    folder = root / ".dvc" / "tmp" / f"site-{os.getuid()}"
    with contextlib.suppress(OSError):
        if (root / ".dvc").is_dir():
            folder.parent.mkdir(exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            return folder
    return None
