"""``make serve``: Prefect's server, MLflow's server and one worker on this machine, until Ctrl-C.

    python -m flows.serve [--prefect-port N] [--mlflow-port N] [--team [--host HOST] [--name NAME ...]]

Prefect's database is in .verdict/; MLflow's is the one that `make run` writes, so its runs are there. Both servers
listen on 127.0.0.1 and require the login in .verdict/login, which each clone makes once. With --team both are on
PostgreSQL, their logins come from the environment, and --host binds another address.
"""

if __name__ == "__main__":  # before the imports, which take a second
    from flows import interrupts

    interrupts.leave_at_once()

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ruamel.yaml import YAML

from flows import alerts, interrupts
from flows.servers import settings
from flows.servers.connection import connected
from flows.servers.door import refuse_taken
from flows.servers.settings import DATABASES, HOST, LOGINS, Place
from flows.servers.temporary import comes_up, last_error, supervised
from flows.supervise import GRACE_SECONDS
from flows.surroundings import settle_surroundings
from stages.contract.errors import UserError
from stages.contract.secrets import redact

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

POOL = "verdict"  # as in prefect.yaml
GPU_TAG = "gpu"  # of the tasks of stages with `meta: {resource: gpu}`


@dataclass(frozen=True)
class Service:
    """A server or the worker, as a process of its own."""

    name: str
    process: subprocess.Popen[bytes]
    lifeline: int  # closed, it stops
    log: Path


def main(argv: list[str] | None = None) -> int:
    """Serve. Exit code: 0 stopped by Ctrl-C or SIGTERM, 1 something did not start or ended by itself."""
    args = _arguments(argv)
    with interrupts.raised():
        try:
            _serve(Path.cwd(), args)
        except KeyboardInterrupt:
            return 0
        except (UserError, OSError) as e:
            print(f"error: {redact(str(e))}", file=sys.stderr)
            return 1


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=__doc__.split("\n\n")[0])
    parser.add_argument("--team", action="store_true", help=f"{', '.join([*DATABASES, *LOGINS])} must be set")
    parser.add_argument("--prefect-port", type=int, default=4200)
    parser.add_argument("--mlflow-port", type=int, default=5000)
    parser.add_argument("--host", default=HOST, help=f"with --team: the address to listen on ({HOST})")
    parser.add_argument(
        "--name", action="append", default=[], help="with --team: a name by which people reach this machine"
    )
    return parser.parse_args(argv)


def _serve(root: Path, args: argparse.Namespace) -> NoReturn:
    """Start everything, watch it, and stop it in the end.

    Raises:
        UserError: a port is taken, a database or login is not named, a service did not start or ended.
    """
    settle_surroundings(root)
    for line in alerts.replaced_settings():
        print(f"warning: {line}", file=sys.stderr)
    place = settings.serve_place(args)
    os.environ["no_proxy"] += f",{place.near}"
    for name, port in place.ports:
        refuse_taken(place.host, port, f"Choose another: --{name}-port N.")
    home = root / ".verdict"
    home.mkdir(exist_ok=True)
    databases = settings.databases(root, args.team)
    logins = settings.logins(home, args.team)
    worker = settings.of_worker(home, place, *logins)
    servers = settings.of_servers(worker, place, databases)
    print(f"Starting Prefect's and MLflow's server; their logs are {home}/serve-*.log", flush=True)
    started = time.monotonic()
    services: list[Service] = []
    try:
        for name, port in place.ports:
            services.append(_start(name, _door(name, place, port), servers, home))
        _check_up(services[0], f"{place.prefect}/api")
        with _prefect(place, logins[0]) as client:
            if not args.team:  # a team's other machines may have workers in the pool
                _end_lost_runs(client)
            _register(root, client, worker)
        start_worker = ["prefect", "worker", "start", "--type", "process", "--pool", POOL]
        services.append(_start("worker", start_worker, worker, home))
        _check_up(services[1], place.mlflow)
        guide = _guide(home, place, args.team, logins[0])
        print(f"Ready after {time.monotonic() - started:.0f} s.\n{guide}", flush=True)
        _watch(services)
    finally:
        _stop(services, place, logins[0])


@contextlib.contextmanager
def _prefect(place: Place, login: str) -> "Iterator[SyncPrefectClient]":
    """Open a client of the server that :func:`_serve` has started."""
    from prefect.client.orchestration import get_client

    with connected(f"{place.prefect}/api", login), get_client(sync_client=True) as client:
        yield client


def _watch(services: list[Service]) -> NoReturn:
    while True:
        for service in services:
            if service.process.poll() is not None:
                raise UserError(_ended(service))
        time.sleep(0.5)


def _door(name: str, place: Place, port: int) -> list[str]:
    names = [argument for name in place.names for argument in ("--name", name)]
    return ["flows.servers.door", name, "--host", place.host, "--port", str(port), *names]


def _guide(home: Path, place: Place, team: bool, login: str) -> str:
    """Return the addresses and the login of the started servers, as lines to print."""
    lines = [f"  Prefect  {place.prefect}", f"  MLflow   {place.mlflow}"]
    if team:
        lines += ["Both ask for their login; `make run` elsewhere needs " + ", ".join(settings.CLIENT) + "."]
    else:
        file = settings.write_client_settings(home, place)
        lines += [f"  Login    {login}   (Prefect asks for all of it, MLflow for user and password)"]
        lines += [f"`make run` shows up there after: . {os.path.relpath(file)}"]
    return "\n".join([*lines, "Ctrl-C stops all of it; a running stage saves a checkpoint first."])


def _start(name: str, command: list[str], env: dict[str, str], home: Path) -> Service:
    log = home / f"serve-{name}.log"
    with log.open("w") as out:
        process, lifeline = supervised([sys.executable, "-m", *command], env, out)
    return Service(name, process, lifeline, log)


def _check_up(service: Service, url: str) -> None:
    if not comes_up(service.process, url):
        raise UserError(_ended(service))


def _ended(service: Service) -> str:
    with service.log.open(errors="replace") as log:
        return f"{service.name} does not answer or has ended: {last_error(log)} More: {service.log}"


def _register(root: Path, client: "SyncPrefectClient", env: dict[str, str]) -> None:
    """Register the work pool, the limit of one GPU stage at a time and the deployments of prefect.yaml.

    Existing ones stay, with their runs. ``env`` is the environment of Prefect's command line.
    """
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    with contextlib.suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))  # its worker adds the template
    client.create_concurrency_limit(GPU_TAG, 1)
    file = Path("flows") / "prefect.yaml"
    flows = YAML(typ="safe").load((root / file).read_text())["deployments"]
    names = [f"--name={d['name']}" for d in flows if (root / d["entrypoint"].partition(":")[0]).exists()]
    deploy = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", *names, "--prefect-file", str(file)]
    done = subprocess.run(deploy, cwd=root, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise UserError(f"the deployments of {file} could not be registered:\n{redact(done.stdout.strip()[-1000:])}")


def _stop(services: list[Service], place: Place, login: str) -> None:
    """Stop the worker's runs, which save their state, then the worker, then the servers."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a second one would leave it half done
        signal.signal(number, signal.SIG_IGN)
    if len(services) > 2:
        _cancel_runs(place, login, services[2])
    for service in reversed(services):  # the servers take the worker's last reports
        os.close(service.lifeline)
        if service.name == "worker":
            service.process.wait()
    for service in services:
        service.process.wait()


def _begun_runs(client: "SyncPrefectClient") -> "list[FlowRun]":
    """Return the pool's flow runs that have begun and not ended."""
    from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter

    begun = FlowRunFilter(state={"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}})
    return client.read_flow_runs(flow_run_filter=begun, work_pool_filter=WorkPoolFilter(name={"any_": [POOL]}))


def _end_lost_runs(client: "SyncPrefectClient") -> None:
    """Mark runs without a worker as crashed: each would keep the next one waiting for minutes."""
    from prefect.states import Crashed

    for run in _begun_runs(client):
        state = Crashed(message="the machine or `make serve` was ended while it ran")
        client.set_flow_run_state(run.id, state, force=True)


def _cancel_runs(place: Place, login: str, worker: Service) -> None:
    """Cancel the worker's flow runs, and wait for their end as long as a checkpoint may take."""
    import psutil
    from prefect.states import Cancelling

    cancelled = set()
    end = time.monotonic() + GRACE_SECONDS + 10
    # Without a server or a worker there is nothing to cancel.
    with contextlib.suppress(UserError, psutil.Error), _prefect(place, login) as client:
        while time.monotonic() < end:
            ours = {str(p.pid) for p in psutil.Process(worker.process.pid).children(recursive=True)}
            # A team's pool may have workers elsewhere. The process is HOST:PID.
            runs = [run for run in _begun_runs(client) if (run.infrastructure_pid or "").rpartition(":")[2] in ours]
            if not runs:
                return
            for run in runs:
                if run.id not in cancelled:
                    print(f"Stopping {run.name}, which has {GRACE_SECONDS} s to save a checkpoint", flush=True)
                    client.set_flow_run_state(run.id, Cancelling())
                    cancelled.add(run.id)
            time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
