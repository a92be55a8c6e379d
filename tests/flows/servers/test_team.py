"""`make serve-team`: Prefect and MLflow on PostgreSQL, with as many runs at once as a team has."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from pathlib import Path

import psycopg2
import pytest

from flows.servers.settings import LOGINS
from stages.contract.tracking.locations import spools
from tests.debian import installed
from tests.flows.conftest import PATIENCE, REPOSITORY, free_port, own_lines, wait_for
from tests.flows.served import Served, ask, processes

RUNS = 20
# No stage goes on before all of them have begun: each waits for the file `go`.
MEETING = """
stages:
  toy:
    cmd: sh -c 'touch ../began/$$; until [ -e ../go ]; do sleep 2; done; exec python -m tests.contract.toy'
    deps: [input.txt]
    params: [seed]
    outs: [out/toy, reports/toy]
    meta: {timeout: 600}
"""
# A process each, as on twenty machines, but only the first imports Prefect, which takes seconds.
TOGETHER = """
import os, sys
import dvc.repo.reproduce
from flows.pipeline import pipeline
roots = sys.argv[1:]
for root in roots:
    if os.fork() == 0:
        os._exit(not pipeline(root=root, return_state=True).is_completed())
sys.exit(sum(os.wait()[1] != 0 for _ in roots))
"""


@pytest.fixture(scope="module")
def postgresql():
    """The address of a PostgreSQL cluster of its own, without a database's name."""
    initdb, pg_ctl = (installed(command, "postgresql") for command in ("initdb", "pg_ctl"))
    folder = Path(tempfile.mkdtemp(prefix="verdict-postgresql-"))  # pytest's folders are closed to other users
    somebody = {}
    if os.geteuid() == 0:  # whom PostgreSQL refuses
        shutil.chown(folder, "nobody")
        somebody = {"user": "nobody", "extra_groups": []}

    def call(*command):
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, **somebody)

    port = free_port()
    call(initdb, "-D", "data", "-U", "verdict", "--auth=trust", "--no-sync", "--no-locale", "--encoding=UTF8")
    options = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off"
    call(pg_ctl, "-D", "data", "-l", "log", "-w", "-o", options, "start")
    yield f"postgresql://verdict:pL4nt-ed@127.0.0.1:{port}"  # which trusts whatever password
    call(pg_ctl, "-D", "data", "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.fixture
def team(postgresql, make_repo):
    """What `make serve-team` starts."""
    with contextlib.closing(psycopg2.connect(f"{postgresql}/postgres")) as connection:
        connection.autocommit = True
        for name in ("prefect", "mlflow"):
            connection.cursor().execute(f"CREATE DATABASE {name}")
    databases = {
        "PREFECT_API_DATABASE_CONNECTION_URL": f"{postgresql}/prefect".replace("://", "+asyncpg://"),
        "MLFLOW_BACKEND_STORE_URI": f"{postgresql}/mlflow",
    }
    root = make_repo("stages: {}\n", "server")
    for room in ("flows", "stages"):
        (root / room).symlink_to(REPOSITORY / room)
    logins = dict(zip(LOGINS, ("team:pL4nt-ed", "team", "pL4nt-ed"), strict=True))
    served = Served(root, uuid.uuid4().hex, "", "--team", "--name", "verdict.example.org", **databases, **logins)
    yield served
    served.end()


def test_of_twenty_flow_runs_at_once_none_is_lost(team, make_repo, tmp_path):
    roots = [make_repo(MEETING, f"{number}") for number in range(RUNS)]
    for number, root in enumerate(roots):
        (root / "input.txt").write_text(f"{number} words")
    (tmp_path / "began").mkdir()
    lines = iter(team.process.stdout.readline, "")
    assert any(line.startswith("Ready") for line in lines), team.process.stderr.read()

    home = tmp_path / "home"
    for address in (f"{team.prefect}/api/admin/version", f"{team.mlflow}/version"):
        assert [ask(address)[0], ask(address, team.login)[0]] == [401, 200]
        assert ask(address, team.login, Host="verdict.example.org", Origin="https://verdict.example.org")[0] == 200
        assert ask(address, team.login, Host="evil.example.org")[0] == 403
    env = team.clients() | {
        "VERDICT_HOME": str(home), "PREFECT_HOME": str(tmp_path / "prefect"), "PYTHONPATH": str(REPOSITORY),
        "VERDICT_TRACKING": "on",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
    }  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        together = subprocess.Popen([sys.executable, "-c", TOGETHER, *map(str, roots)], env=env, stdout=log, stderr=log)
    began = tmp_path / "began"
    wait_for(lambda: len(list(began.iterdir())) == RUNS or together.poll() is not None, seconds=3 * PATIENCE)
    (tmp_path / "go").touch()
    assert together.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    assert len(list(began.iterdir())) == RUNS

    runs = team.api("/flow_runs/filter", {"flow_runs": {"deployment_id": {"is_null_": True}}})
    assert Counter(run["state"]["type"] for run in runs) == {"COMPLETED": RUNS}
    assert {run["parameters"]["root"] for run in runs} == {*map(str, roots)}
    tasks = team.api("/task_runs/filter", {})
    assert Counter((task["name"], task["state"]["name"]) for task in tasks) == {("toy", "Completed"): RUNS}

    wait_for(lambda: not list(spools(home).iterdir()))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in team.clients().items():
            patch.setenv(name, value)
        recorded = mlflow_runs(team.mlflow)
    assert Counter((run.info.run_name == "toy", run.info.status) for run in recorded) == {
        (True, "FINISHED"): RUNS,
        (False, "FINISHED"): RUNS,
    }
    made = {run.data.tags["mlflow.parentRunId"]: run.data.metrics for run in recorded if run.info.run_name == "toy"}
    assert made.keys() == {run.info.run_id for run in recorded if run.info.run_name != "toy"}
    assert all(metrics["loss"] == 1 / 20 for metrics in made.values())

    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes(team.marker)]
    assert len(commands) >= 3 and not [command for command in commands if b"pL4nt" in command]
    team.process.send_signal(signal.SIGINT)
    _, err = team.process.communicate(timeout=PATIENCE)
    assert (team.process.returncode, own_lines(err)) == (0, [])
    kept = [path for folder in (team.root / ".verdict", home) for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in kept if b"pL4nt" in path.read_bytes()]


def mlflow_runs(url):
    from mlflow import MlflowClient

    client = MlflowClient(url)
    return client.search_runs([client.get_experiment_by_name("verdict").experiment_id], max_results=1000)
