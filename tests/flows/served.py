"""`make serve` as a test starts it, on free ports."""

import os
import subprocess
import sys
import time
from pathlib import Path

from flows import serve
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


class Served:
    """A repository of toy stages, with the flows of this one, and what `make serve` made of it."""

    def __init__(self, root, marker, webhook, *arguments, **variables):
        self.root, self.marker = root, marker
        ports = free_port(), free_port()
        self.prefect, self.mlflow = (f"http://127.0.0.1:{port}" for port in ports)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
        env |= {"VERDICT_ALERT_WEBHOOK": webhook, "VERDICT_TEST": marker} | variables
        ports_said = ["--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows.serve", *arguments, *ports_said],
            cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def api(self, path, body=None):
        return serve.call(f"{self.prefect}/api{path}", body)

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
        """Seconds until the trainer has saved and is gone."""
        started = time.monotonic()
        wait_for(lambda: not alive(trainer))
        assert (self.root.parent / "saved").exists()
        return time.monotonic() - started

    def end(self):
        """Kill it, and wait until all that it started is gone."""
        self.process.kill()
        self.process.wait()
        wait_for(lambda: not processes(self.marker))
