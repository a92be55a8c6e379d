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

from stages.contract.places import spools
from tests.debian import installed
from tests.flows.conftest import REPOSITORY, free_port, wait_for
from tests.flows.served import Served

RUNS = 20
# No stage goes on before all of them have begun.
MEETING = """
stages:
  toy:
    cmd: sh -c 'touch ../began/$$; until [ $(ls ../began | wc -l) -ge %d ]; do sleep 0.5; done;
      exec python -m tests.contract.toy'
    deps: [input.txt]
    params: [seed]
    outs: [out/toy, reports/toy]
    meta: {timeout: 200}
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
    yield f"postgresql://verdict@127.0.0.1:{port}"
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
    served = Served(root, uuid.uuid4().hex, "", "--team", **databases)
    yield served
    served.end()


def test_of_twenty_flow_runs_at_once_none_is_lost(team, make_repo, tmp_path):
    roots = [make_repo(MEETING % RUNS, f"{number}") for number in range(RUNS)]
    for number, root in enumerate(roots):
        (root / "input.txt").write_text(f"{number} words")
    (tmp_path / "began").mkdir()
    lines = iter(team.process.stdout.readline, "")
    assert any(line.startswith("Ready") for line in lines), team.process.stderr.read()

    home = tmp_path / "home"
    env = os.environ | {
        "PREFECT_API_URL": f"{team.prefect}/api", "MLFLOW_TRACKING_URI": team.mlflow, "VERDICT_HOME": str(home),
        "PREFECT_HOME": str(tmp_path / "prefect"), "PYTHONPATH": str(REPOSITORY), "VERDICT_TRACKING": "on",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
    }  # fmt: skip
    ended = subprocess.run([sys.executable, "-c", TOGETHER, *map(str, roots)], env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert len(list((tmp_path / "began").iterdir())) == RUNS

    runs = team.api("/flow_runs/filter", {"flow_runs": {"deployment_id": {"is_null_": True}}})
    assert Counter(run["state"]["type"] for run in runs) == {"COMPLETED": RUNS}
    assert {run["parameters"]["root"] for run in runs} == {*map(str, roots)}
    tasks = team.api("/task_runs/filter", {})
    assert Counter((task["name"], task["state"]["name"]) for task in tasks) == {("toy", "Completed"): RUNS}

    wait_for(lambda: not list(spools(home).iterdir()))
    recorded = mlflow_runs(team.mlflow)
    assert Counter((run.info.run_name == "toy", run.info.status) for run in recorded) == {
        (True, "FINISHED"): RUNS,
        (False, "FINISHED"): RUNS,
    }
    made = {run.data.tags["mlflow.parentRunId"]: run.data.metrics for run in recorded if run.info.run_name == "toy"}
    assert made.keys() == {run.info.run_id for run in recorded if run.info.run_name != "toy"}
    assert all(metrics["loss"] == 1 / 20 for metrics in made.values())

    team.process.send_signal(signal.SIGINT)
    _, err = team.process.communicate(timeout=60)
    assert (team.process.returncode, err) == (0, "")


def mlflow_runs(url):
    from mlflow import MlflowClient

    client = MlflowClient(url)
    return client.search_runs([client.get_experiment_by_name("verdict").experiment_id], max_results=1000)
