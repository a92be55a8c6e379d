"""The environment of `make serve`'s servers and worker: addresses, databases, logins. Starts nothing."""

import argparse
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from flows.servers.door import host_headers
from flows.servers.login import login
from flows.servers.temporary import protection
from flows.surroundings import PREFECT_DEFAULTS, environment
from stages.contract.errors import UserError
from stages.contract.tracking import locations, moved

HOST, EVERYWHERE = "127.0.0.1", "0.0.0.0"
CLIENT = (
    "PREFECT_API_URL",
    "PREFECT_API_AUTH_STRING",
    *(f"MLFLOW_TRACKING_{x}" for x in ("URI", "USERNAME", "PASSWORD")),
)
DATABASES = {
    "PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://user:password@host/prefect",
    "MLFLOW_BACKEND_STORE_URI": "postgresql://user:password@host/mlflow",
}
LOGINS = {
    "PREFECT_SERVER_API_AUTH_STRING": "user:password",
    "MLFLOW_TRACKING_USERNAME": "team",
    "MLFLOW_TRACKING_PASSWORD": "password",
}
# Settings of the person's shell that would point the worker or a server to other servers.
MISLEADING = {
    "PREFECT_API_KEY", "PREFECT_PROFILE", "PREFECT_SERVER_API_BASE_PATH", "PREFECT_UI_SERVE_BASE",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL",
    "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """The addresses of the two servers, and the other names that they answer to."""

    host: str
    prefect_port: int
    mlflow_port: int
    names: tuple[str, ...] = ()

    @property
    def prefect(self) -> str:
        return f"http://{self.near}:{self.prefect_port}"

    @property
    def mlflow(self) -> str:
        return f"http://{self.near}:{self.mlflow_port}"

    @property
    def ports(self) -> tuple[tuple[str, int], tuple[str, int]]:
        return ("prefect", self.prefect_port), ("mlflow", self.mlflow_port)

    @property
    def near(self) -> str:
        """The address by which this machine reaches the servers."""
        return HOST if self.host == EVERYWHERE else self.host


def serve_place(args: argparse.Namespace) -> Place:
    """Return the addresses of the servers from the command line.

    Raises:
        UserError: another address than loopback without --team, or a name is missing.
    """
    if not args.team and (args.host != HOST or args.name):
        raise UserError("--host and --name are of serve-team: the login of make serve is for one person's machine.")
    if args.host == EVERYWHERE and not args.name:
        raise UserError(f"--host {EVERYWHERE} needs --name: the name or address by which people reach this machine.")
    return Place(args.host, args.prefect_port, args.mlflow_port, tuple(args.name))


def logins(home: Path, team: bool) -> tuple[str, str]:
    """Return Prefect's and MLflow's login, each user:password: the clone's, or the team's from the environment.

    Raises:
        UserError: one is not set, or cannot be kept.
    """
    if not team:
        return (login(home),) * 2
    for name, example in LOGINS.items():
        if not os.environ.get(name):
            raise UserError(f"{name} is not set. A team's servers ask for a login: set it, for example to {example}.")
    prefect, user, password = (os.environ[name] for name in LOGINS)
    return prefect, f"{user}:{password}"


def databases(root: Path, team: bool) -> dict[str, str]:
    """Return the settings that name the servers' databases and where MLflow's artifacts go.

    Raises:
        UserError: a team's database is not named, or cannot be used.
    """
    if not team:  # a path and not the server's own address, so that `make run` without this server can write there too
        home = locations.home(root)
        moved.follow(home)
        return {
            "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{home / 'mlflow.db'}",
            "MLFLOW_DEFAULT_ARTIFACT_ROOT": (home / "mlruns").as_uri(),
            "MLFLOW_ARTIFACTS_DESTINATION": "",
        }
    for name, example in DATABASES.items():
        if not os.environ.get(name, "").startswith("postgresql"):
            raise UserError(f"{name} names no PostgreSQL database. Set it, for example to {example}.")
    named = {name: os.environ[name] for name in DATABASES}
    _refuse_unusable(named["MLFLOW_BACKEND_STORE_URI"])
    own = (root / ".verdict" / "artifacts").as_uri()
    artifacts = os.environ.get("MLFLOW_ARTIFACTS_DESTINATION") or own
    return named | {"MLFLOW_DEFAULT_ARTIFACT_ROOT": "mlflow-artifacts:/", "MLFLOW_ARTIFACTS_DESTINATION": artifacts}


def _refuse_unusable(uri: str) -> None:
    from sqlalchemy import create_engine, exc

    try:
        create_engine(uri)
    except ModuleNotFoundError as e:
        drivers: dict[str | None, str] = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary"}
        driver = drivers.get(e.name, e.name)
        raise UserError(f"MLFLOW_BACKEND_STORE_URI needs {e.name}: .venv/bin/uv pip install {driver}") from None
    except exc.ArgumentError:  # its text quotes the password
        raise UserError("MLFLOW_BACKEND_STORE_URI is no address of a database.") from None


def of_worker(home: Path, place: Place, prefect_login: str, mlflow_login: str) -> dict[str, str]:
    """Return the environment of the worker, which its runs inherit. Secrets go by environment: arguments are public."""
    user, _, password = mlflow_login.partition(":")
    defaults = PREFECT_DEFAULTS | {"PREFECT_WORKER_QUERY_SECONDS": "2"}  # 10 is for many workers and a far server
    ours = {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_URL": f"{place.prefect}/api",
        "PREFECT_API_AUTH_STRING": prefect_login,
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "true",
        "MLFLOW_TRACKING_URI": place.mlflow,
        "MLFLOW_TRACKING_USERNAME": user,
        "MLFLOW_TRACKING_PASSWORD": password,
    }
    return _without(defaults | environment(ours), {*DATABASES, *LOGINS} - {*ours})


def of_servers(worker: dict[str, str], place: Place, databases: dict[str, str]) -> dict[str, str]:
    """Return the environment of both servers, given that of the ``worker``."""
    defaults = {
        "PREFECT_SERVER_UI_API_URL": "/api",  # the UI calls port 4200 otherwise
        # In memory, the default, a restart would forget who holds a concurrency limit, and nobody would ever free it.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # Of the defaults, 5 and 10 s, a request dies where twenty runs start at once, and the run with it.
        "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60",
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # four more processes, for services not used here
    }
    hosts = host_headers(place.host, place.mlflow_port, place.names)
    ours = {
        **protection(worker["PREFECT_API_AUTH_STRING"], place.prefect, *(f"https://{name}" for name in place.names)),
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(hosts),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"{s}://{host}" for host in hosts for s in ("http", "https")),
        **databases,
    }
    return defaults | worker | ours


def _without(environment: dict[str, str], names: set[str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.upper() not in names | MISLEADING}


def write_client_settings(home: Path, place: Place) -> Path:
    """Write the shell settings that record runs at the clone's own servers; the login stays in its own file."""
    path = home / "serve.env"
    path.write_text(
        f"export PREFECT_API_URL={place.prefect}/api MLFLOW_TRACKING_URI={place.mlflow}\n"
        f'export PREFECT_API_AUTH_STRING="$(cat {shlex.quote(str(home / "login"))})"\n'
        'export MLFLOW_TRACKING_USERNAME="${PREFECT_API_AUTH_STRING%%:*}"\n'
        'export MLFLOW_TRACKING_PASSWORD="${PREFECT_API_AUTH_STRING#*:}"\n'
    )
    return path
