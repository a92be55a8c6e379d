"""A Prefect server for the length of this process, for people who run none.

Prefect would start one itself, but in this process's group, so that Ctrl-C ends it before the stages' states
are recorded.
"""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from flows import supervise
from flows.servers.login import login
from flows.surroundings import CODE_ROOT
from stages.contract.errors import UserError
from stages.contract.secrets import redact

STARTUP_SECONDS = 180  # a clone's first start migrates a new database: 25 s on a busy two-core machine
GRACE_SECONDS = 5
# The person's settings that the temporary server keeps. Others are for another server: a password, a base path.
KEPT = ("PREFECT_HOME", "PREFECT_API_DATABASE_", "PREFECT_SERVER_DATABASE_", "PREFECT_LOGGING_")
# No proxy reaches loopback. Not httpx: a call takes 48 ms of CPU, and this asks ten times a second.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
ERROR = re.compile(r"[\w.]+(Error|Exception)\b.*: ")


@dataclass(frozen=True)
class Server:
    """A server that answers at ``url``, its API's. Closing the file descriptor ``lifeline`` ends it."""

    url: str
    login: str  # user:password
    process: subprocess.Popen[bytes]
    lifeline: int


_servers: list[Server] = []


def is_temporary(url: str | None) -> bool:
    """Whether the API at ``url`` is that of a temporary server of this process."""
    return url in [server.url for server in _servers]


def end() -> None:
    """End the temporary servers of this process; for a process that continues without them."""
    while _servers:
        os.close(_servers.pop().lifeline)


def lost() -> bool:
    """Whether a temporary server has ended before this process, or is about to."""
    return not all(server_answers(server.url, timeout=5) for server in _servers)


def start_server(home: Path) -> Server:
    """Start a server on a free port, with its database in ``home`` (.verdict/). It ends with this process.

    Raises:
        UserError: ``home`` cannot be written, or the server does not start.
    """
    secret = login(home)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    env = {name: value for name, value in os.environ.items() if not _of_another_server(name)}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CODE_ROOT), env.get("PYTHONPATH")]))  # whatever the folder
    env = {"PREFECT_HOME": str(home / "prefect"), **env, **protection(secret, address)}
    # The variables are those of prefect.server.api.server.SubprocessASGIServer.
    env |= {"PREFECT__SERVER_EPHEMERAL": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    env |= {"PREFECT_UI_ENABLED": "0", "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false"}
    door = [sys.executable, "-m", "flows.servers.door", "prefect"]
    command = [*door, "--host", "127.0.0.1", "--port", str(port), "--nice", "5"]
    with tempfile.TemporaryFile("w+") as log:  # the server keeps its own descriptor
        process, lifeline = supervised(command, env, log, STARTUP_SECONDS)  # not killed in the middle of a migration
        if not comes_up(process, f"{address}/api"):
            os.close(lifeline)
            advice = "Prefect's temporary server did not start. `dvc repro` works without it."
            raise UserError(f"{advice}\n{last_error(log)}")
    _servers.append(Server(f"{address}/api", secret, process, lifeline))
    return _servers[-1]


def makes_database(home: Path) -> bool:
    """Whether a server with ``home`` has to make its own database first."""
    if any(os.environ.get(f"PREFECT_{kind}_DATABASE_CONNECTION_URL") for kind in ("API", "SERVER")):
        return False
    return not (Path(os.environ.get("PREFECT_HOME", home / "prefect")) / "prefect.db").exists()


def protection(secret: str, *origins: str) -> dict[str, str]:
    """Return the settings of a Prefect server, and of its clients, with a login.

    ``secret`` (user:password) is the login; only the server's own pages, at ``origins``, may use it.
    """
    return {
        "PREFECT_API_AUTH_STRING": secret,
        "PREFECT_SERVER_API_AUTH_STRING": secret,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(origins),
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "true",
    }


def _of_another_server(name: str) -> bool:
    return name.upper().startswith("PREFECT_") and not name.upper().startswith(KEPT)


def last_error(log: IO[str]) -> str:
    """Return the last line of ``log`` that names an error, or its last line, without passwords."""
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()] or [f"It did not answer within {STARTUP_SECONDS} s."]
    return redact(next((line for line in reversed(lines) if ERROR.match(line)), lines[-1]))


def supervised(
    command: list[str], env: dict[str, str], log: IO[str], grace: float = GRACE_SECONDS
) -> tuple[subprocess.Popen[bytes], int]:
    """Start ``command`` and return its supervisor and the file descriptor whose closing stops it.

    It stops in at most ``grace`` seconds, also when this process ends. Its output goes to the file ``log``.
    """
    read, lifeline = os.pipe()
    process = subprocess.Popen(
        supervise.command(grace, 0, command),
        env=env, stdin=read, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    os.close(read)
    return process, lifeline


def comes_up(process: subprocess.Popen[bytes], url: str) -> bool:
    """Wait until the server at ``url`` answers; False if its ``process`` ends first, or after STARTUP_SECONDS."""
    end = time.monotonic() + STARTUP_SECONDS
    while not server_answers(url, timeout=5):
        if process.poll() is not None or time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def server_answers(api_url: str, timeout: float) -> bool:
    """Whether an HTTP server of this machine answers at ``api_url`` within ``timeout`` seconds, with any status."""
    try:
        with DIRECT.open(f"{api_url.rstrip('/')}/health", timeout=timeout):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
