"""Programs that a few tests need and that no Python package brings: Debian's own packages of them."""

import fcntl
import glob
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

# A lock that another apt holds is waited for; a network that is not there is soon given up.
OPTIONS = ["-q", "-y", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20"]
OFF_THE_PATH = ["/usr/lib/postgresql/*/bin"]  # where Debian keeps what several versions of may be installed


def installed(command: str, package: str) -> str:
    """The path of ``command``. Where it is missing, root gets it from Debian's ``package``, and for everybody else,
    or if Debian does not answer, the test is skipped with a reason that names the package."""
    if path := _which(command):
        return path
    if os.geteuid() or not shutil.which("apt-get"):
        pytest.skip(f"{command} is not on this machine; on Debian: apt-get install {package}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with (Path(tempfile.gettempdir()) / "verdict-apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run side by side, and `apt-get update` waits for no other
        for arguments in (["update"], ["install", "--no-install-recommends", package]):  # the second tells how it went
            apt = subprocess.run(["apt-get", *OPTIONS, *arguments], env=environment, capture_output=True, text=True)
    if path := _which(command):
        return path
    said = [line for line in (apt.stdout + apt.stderr).splitlines() if line.strip()] or ["nothing"]
    pytest.skip(
        f"{command} is not on this machine, and apt-get install {package} exited with {apt.returncode}: {said[-1]}"
    )


def _which(command: str) -> str | None:
    newest_first = sorted((path for pattern in OFF_THE_PATH for path in glob.glob(pattern)), reverse=True)
    return shutil.which(command, path=os.pathsep.join([os.environ["PATH"], *newest_first]))
