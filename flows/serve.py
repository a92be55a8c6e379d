"""``make serve``: Prefect's server, MLflow's server and one worker on this machine, until Ctrl-C.

    python -m flows.serve [--team] [--prefect-port N] [--mlflow-port N]

Prefect's database is in .verdict/; MLflow's is the one that `make run` writes, so what has run is there. With
--team both are on PostgreSQL. Everything listens on 127.0.0.1 only: neither server asks who you are.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from flows import stage
from flows.cli import PREFECT_DEFAULTS
from flows.server import STARTUP_SECONDS, answers, supervised
from flows.stage import GRACE_SECONDS
from stages.contract import places
from stages.contract.errors import UserError

HOST = "127.0.0.1"
BUSY_SECONDS = 20  # how long a database may be busy
POOL = "verdict"  # as in prefect.yaml
GPU_TAG = "gpu"  # of the tasks of stages with `meta: {resource: gpu}`
TEAM = {
    "PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://user:password@host/prefect",
    "MLFLOW_BACKEND_STORE_URI": "postgresql://user:password@host/mlflow",
}


@dataclass(frozen=True)
class Service:
    name: str
    process: subprocess.Popen
    lifeline: int  # closed, it stops
    log: Path


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 stopped by Ctrl-C or SIGTERM, 1 something did not start or ended by itself."""
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=__doc__.split("\n\n")[0])
    parser.add_argument("--team", action="store_true", help=f"databases from {' and '.join(TEAM)}")
    parser.add_argument("--prefect-port", type=int, default=4200)
    parser.add_argument("--mlflow-port", type=int, default=5000)
    args = parser.parse_args(argv)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:  # SIGINT too: a shell starts background jobs with it ignored
        signal.signal(number, signal.default_int_handler)
    services: list[Service] = []
    try:
        _serve(Path.cwd(), args, services)
    except KeyboardInterrupt:
        return 0
    except (UserError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    finally:
        _stop(services, f"http://{HOST}:{args.prefect_port}/api")
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve(root: Path, args: argparse.Namespace, services: list[Service]) -> None:
    """Start everything, noting it in ``services``, and watch it.

    Raises:
        UserError: a port is taken, a database is not named, a service did not start or ended.
    """
    for name, port in (("prefect", args.prefect_port), ("mlflow", args.mlflow_port)):
        _refuse_taken(name, port)
    home = root / ".verdict"
    home.mkdir(exist_ok=True)
    prefect, mlflow = f"http://{HOST}:{args.prefect_port}", f"http://{HOST}:{args.mlflow_port}"
    database, artifacts = _databases(root, args.team)
    env = environment(home, prefect, mlflow)
    if not args.team:
        env.pop("PREFECT_API_DATABASE_CONNECTION_URL", None)
    started = time.monotonic()
    commands = {
        "prefect": ["prefect", "server", "start", "--host", HOST, "--port", str(args.prefect_port)],
        "mlflow": ["mlflow", "server", "--host", HOST, "--port", str(args.mlflow_port), "--workers", "1",
                   *artifacts],
    }  # fmt: skip
    print(f"Starting Prefect's and MLflow's server; what they say goes to {home}/serve-*.log", flush=True)
    env["MLFLOW_BACKEND_STORE_URI"] = database  # not an argument: those are for everybody to see
    services += [_start(name, command, env, home) for name, command in commands.items()]
    _wait_for(services[0], f"{prefect}/api")
    if not args.team:  # a team's other machines may have workers in the pool
        _end_lost_runs(f"{prefect}/api")
    _register(root, env)
    services.append(_start("worker", ["prefect", "worker", "start", "--type", "process", "--pool", POOL], env, home))
    _wait_for(services[1], mlflow)
    print(
        f"Ready after {time.monotonic() - started:.0f} s.\n"
        f"  Prefect  {prefect}\n  MLflow   {mlflow}\n"
        f"`make run` shows up there with: export PREFECT_API_URL={prefect}/api MLFLOW_TRACKING_URI={mlflow}\n"
        "Ctrl-C stops all of it; a running stage saves a checkpoint first.",
        flush=True,
    )
    while True:
        for service in services:
            if service.process.poll() is not None:
                raise UserError(_ended(service))
        time.sleep(0.5)


def environment(home: Path, prefect: str, mlflow: str) -> dict[str, str]:
    """Of the servers and the worker; the worker's runs inherit it."""
    given = PREFECT_DEFAULTS | {
        "PREFECT_SERVER_UI_API_URL": "/api",  # the UI calls port 4200 otherwise
        # In memory, the default, a restart would forget who holds a limit, and the limit would be held for ever.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # Of the defaults, 5 and 10 s, a request dies where twenty runs start at once, and the run with it.
        "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60",
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        "PREFECT_WORKER_QUERY_SECONDS": "2",  # how soon a run begins; 10 is for many workers and a far server
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # four more processes, for services not used here
    }
    ours = {"PREFECT_HOME": str(home / "prefect"), "PREFECT_API_URL": f"{prefect}/api", "MLFLOW_TRACKING_URI": mlflow}
    return given | stage.environment(ours)


def _databases(root: Path, team: bool) -> tuple[str, list[str]]:
    """MLflow's database and where its artifacts go. Prefect reads its own from the environment."""
    if team:
        for name, example in TEAM.items():
            if not os.environ.get(name, "").startswith("postgresql"):
                raise UserError(f"{name} names no PostgreSQL database. Set it, for example to {example}.")
        uri = os.environ["MLFLOW_BACKEND_STORE_URI"]
        _refuse_unusable(uri)
        artifacts = os.environ.get("MLFLOW_ARTIFACTS_DESTINATION", (root / ".verdict" / "artifacts").as_uri())
        return uri, ["--artifacts-destination", artifacts]
    # A path and not the server's own address, so that `make run` without this server can write there as well.
    home = places.home(root)
    return f"sqlite:///{home / 'mlflow.db'}", [
        "--no-serve-artifacts",
        "--default-artifact-root",
        (home / "mlruns").as_uri(),
    ]


def _refuse_unusable(uri: str) -> None:
    from sqlalchemy import create_engine, exc

    try:
        create_engine(uri)
    except ModuleNotFoundError as e:
        driver = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary"}.get(e.name, e.name)
        raise UserError(f"MLFLOW_BACKEND_STORE_URI needs {e.name}: .venv/bin/uv pip install {driver}") from None
    except exc.ArgumentError:  # its text quotes the password
        raise UserError("MLFLOW_BACKEND_STORE_URI is no address of a database.") from None


def _refuse_taken(name: str, port: int) -> None:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((HOST, port))
        except OSError as e:
            raise UserError(f"port {port} of {HOST}: {e.strerror}. Choose another: --{name}-port N.") from None


def _start(name: str, command: list[str], env: dict[str, str], home: Path) -> Service:
    log = home / f"serve-{name}.log"
    with log.open("w") as out:
        process, lifeline = supervised([sys.executable, "-m", *command], env, out)
    return Service(name, process, lifeline, log)


def _wait_for(service: Service, url: str) -> None:
    end = time.monotonic() + STARTUP_SECONDS
    while not answers(url, timeout=5):
        if service.process.poll() is not None or time.monotonic() > end:
            raise UserError(_ended(service))
        time.sleep(0.1)


def _ended(service: Service) -> str:
    lines = [line for line in service.log.read_text(errors="replace").splitlines() if line.strip()]
    last = "".join(f"\n    {line}" for line in lines[-5:])
    return f"{service.name} does not answer or has ended; the end of {service.log}:{last}"


def _register(root: Path, env: dict[str, str]) -> None:
    """The work pool, the limit of one GPU stage at a time and the deployments of prefect.yaml, at the server that
    ``env`` names. What is there already, with its runs, stays."""
    api = env["PREFECT_API_URL"]
    with contextlib.suppress(urllib.error.HTTPError):  # 409: it exists
        call(f"{api}/work_pools/", {"name": POOL, "type": "process"})  # its worker adds the template
    call(f"{api}/concurrency_limits/", {"tag": GPU_TAG, "concurrency_limit": 1})
    file = Path("flows") / "prefect.yaml"
    flows = YAML(typ="safe").load((root / file).read_text())["deployments"]
    names = [f"--name={d['name']}" for d in flows if (root / d["entrypoint"].partition(":")[0]).exists()]
    deploy = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", *names, "--prefect-file", str(file)]
    done = subprocess.run(deploy, cwd=root, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise UserError(f"the deployments of {file} could not be registered:\n{done.stdout.strip()[-1000:]}")


def _stop(services: list[Service], api: str) -> None:
    """Stop the worker's runs, which save what they have, then the worker, then the servers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is on its way; a second Ctrl-C would leave it half done
    if len(services) > 2:
        _cancel_runs(api, services[2])
    for service in reversed(services):  # the servers hear of the worker's last words
        os.close(service.lifeline)
        if service.name == "worker":
            service.process.wait()
    for service in services:
        service.process.wait()


def _begun_runs(api: str) -> list[dict]:
    """The pool's flow runs that have begun and not ended."""
    states = {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}
    return call(f"{api}/flow_runs/filter", {"flow_runs": {"state": states}, "work_pools": {"name": {"any_": [POOL]}}})


def _end_lost_runs(api: str) -> None:
    """Mark as crashed what no worker is left to end: such a run would keep the next one waiting for minutes."""
    state = {"type": "CRASHED", "message": "the machine or `make serve` was ended while it ran"}
    for run in _begun_runs(api):
        call(f"{api}/flow_runs/{run['id']}/set_state", {"state": state, "force": True})


def _cancel_runs(api: str, worker: Service) -> None:
    """Cancel what the worker has begun, and wait for its end as long as a checkpoint may take."""
    import psutil

    def ours(run: dict) -> bool:  # a team's pool may have workers elsewhere
        pid = (run["infrastructure_pid"] or "").rpartition(":")[2]
        return pid.isdigit() and int(pid) in {
            p.pid for p in psutil.Process(worker.process.pid).children(recursive=True)
        }

    asked: set[str] = set()
    end = time.monotonic() + GRACE_SECONDS + 10
    with contextlib.suppress(OSError, ValueError, psutil.Error):  # without a server or worker there is nobody to tell
        while time.monotonic() < end and (runs := [run for run in _begun_runs(api) if ours(run)]):
            for run in runs:
                if run["id"] not in asked:
                    print(f"Stopping {run['name']}, which has {GRACE_SECONDS} s to save a checkpoint", flush=True)
                    call(f"{api}/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}})
                    asked.add(run["id"])
            time.sleep(0.2)


def call(url: str, body: dict | None = None):
    """Prefect's answer to a POST of ``body``, or to a GET. 503 is its word for a database that is busy, which SQLite's
    is while somebody writes: "send it again", as Prefect's own client does.

    Raises:
        OSError: no answer, or another error (urllib.error.HTTPError).
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as e:
            if e.code != 503 or time.monotonic() > end:
                raise
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
