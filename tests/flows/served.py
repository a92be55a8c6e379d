"""`make serve` as a test starts it, on free ports."""

import os
import subprocess
import sys
from pathlib import Path

import httpx

from benchmarks.screenshots import Api
from flows.servers.door import basic
from flows.servers.login import login
from flows.servers.settings import LOGINS
from tests.flows.conftest import alive, free_port, wait_for

# A stage writes its process id, and when it has heard SIGINT, that it has saved.
TRAINER = """
stages:
  train:
    cmd: sh -c 'trap "touch ../saved; exit 75" INT; echo $$ > ../pid; while true; do sleep 0.1; done'
    deps: [data.txt]
    outs: [model.txt]
    meta: {resource: gpu, retries: 3}
  count:
    cmd: sh -c 'trap "touch ../saved; exit 75" INT; echo $$ > ../pid; while true; do sleep 0.1; done'
    deps: [data.txt]
    outs: [count.txt]
"""


def processes(marker):
    """Ids of the processes that inherited ``marker`` in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if marker.encode() in path.read_bytes() and alive(int(path.parent.name)):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def ask(url, login=None, body=None, **headers):
    """Status and text of the answer to a GET, or a POST of ``body``."""
    sent = {"Content-Type": "text/plain"} | ({"Authorization": basic(login)} if login else {})
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    method = "GET" if body is None else "POST"
    settings = {"timeout": 180, "trust_env": False, "verify": False, "follow_redirects": True}
    answer = httpx.request(method, url, content=body, headers=sent, **settings)
    return answer.status_code, answer.text


class Served:
    """A repository of toy stages, with the flows of this one, and what `make serve` made of it."""

    def __init__(self, root, marker, webhook, *arguments, **variables):
        self.root, self.marker = root, marker
        ports = free_port(), free_port()
        self.prefect, self.mlflow = (f"http://127.0.0.1:{port}" for port in ports)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
        env |= {"VERDICT_ALERT_URLS": webhook, "VERDICT_TEST": marker} | variables
        ports_said = ["--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])]
        self.team_login = variables.get(next(iter(LOGINS)))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows.serve", *arguments, *ports_said],
            cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    @property
    def login(self):
        return self.team_login or login(self.root / ".verdict")

    @property
    def client(self):
        return Api(f"{self.prefect}/api", self.login)

    def api(self, path, body=None):
        return self.client.get(path) if body is None else self.client.post(path, body)

    def clients(self):
        """This process's environment and what a client of the servers adds to it."""
        user, _, password = self.login.partition(":")
        return os.environ | {
            "PREFECT_API_URL": f"{self.prefect}/api", "PREFECT_API_AUTH_STRING": self.login,
            "MLFLOW_TRACKING_URI": self.mlflow, "MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password,
        }  # fmt: skip

    def start(self, name, **options):
        """Start a run of the deployment ``name``, "flow/deployment", and return its id."""
        deployment = self.api(f"/deployments/name/{name}")
        return self.api(f"/deployments/{deployment['id']}/create_flow_run", options)["id"]

    def run(self, stage):
        """Start the deployment `pipeline`; return its flow run's id and the stage's process id."""
        for file in ("pid", "saved"):
            (self.root.parent / file).unlink(missing_ok=True)
        run = self.start("pipeline/pipeline", parameters={"stages": [stage]})
        file = self.root.parent / "pid"
        return run, int(wait_for(lambda: file.exists() and file.read_text()))

    def ended(self, run):
        """A flow run's final state."""
        final = ("CANCELLED", "FAILED", "CRASHED", "COMPLETED")
        return wait_for(lambda: (s := self.api(f"/flow_runs/{run}")["state"])["type"] in final and s)

    def saved(self, trainer):
        """Wait until the trainer is gone, and check that it has saved."""
        wait_for(lambda: not alive(trainer))
        assert (self.root.parent / "saved").exists()

    def end(self):
        """Kill it, and wait until all that it started is gone."""
        self.process.kill()
        self.process.wait()
        wait_for(lambda: not processes(self.marker))
