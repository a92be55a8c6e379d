"""Find, create and close the MLflow run of a pipeline, above the runs of its stages."""

import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contract.tracking import locations
from stages.contract.tracking.names import LONGEST, Names, allowed_text
from stages.contract.tracking.spool import HEADLINE, RunRecord, flatten, read_as, read_object, read_summary
from stages.contract.tracking.tracker import TAG_LENGTH, experiment, log_artifacts, log_metrics, log_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# MLflow 3.17 opens with its pages for agents, whatever the experiment's kind, unless an address or the browser's last
# choice says otherwise (mlflow/server/js, WorkflowTypeContext).
TRAINING_VIEW = "workflowType=machine_learning"
NOTE = "mlflow.note.content"  # the tag that MLflow shows as a run's description


def ship_pipeline(client: "MlflowClient", folder: Path, home: Path) -> list[str]:
    """Close a pipeline's run: as its flow says in end.json, or as KILLED if the flow left none."""
    end = read_object(folder / "end.json")
    if end:
        refusals = _close_pipeline(client, end, folder, home)
    else:
        refusals = []
        for run in _pipeline_runs(client, read_object(folder / "begin.json")["pipeline"], home):
            client.set_terminated(run.info.run_id, "KILLED")
    shutil.rmtree(folder)
    return refusals


def _close_pipeline(client: "MlflowClient", end: dict[str, Any], folder: Path, home: Path) -> list[str]:
    run_id, now = pipeline_run(client, end, home), int(time.time() * 1000)
    rows = ["| stage | state | made by |", "|---|---|---|"]
    for stage, state in end["states"].items():
        made_by = _find_run(client, end["fingerprints"].get(stage), home)
        link = f"[run](#{made_by.url.partition('#')[2]})" if made_by else ""  # within MLflow's pages, on any port
        rows.append(f"| {stage} | {state} | {link} |")
    description = "\n\n".join([*filter(None, [end.get("summary")]), "## Stages", "\n".join(rows)])
    refusals, names = log_tags(client, run_id, {NOTE: description}), Names({})
    refusals += log_metrics(client, run_id, [(names.allowed(n), value, now, 0) for n, value in end["metrics"].items()])
    refusals += log_artifacts(client, run_id, folder / "artifacts")
    client.set_terminated(run_id, end["status"])
    return refusals


def _find_run(client: "MlflowClient", fingerprint: str | None, home: Path) -> RunRecord | None:
    """Find the run that made a stage's result: in this clone's records, or by its tag in MLflow."""
    if fingerprint is None:
        return None
    if record := read_as(locations.run_records(home) / f"{fingerprint}.json", RunRecord):
        return record
    found = client.search_runs(
        [experiment(client, home)], f"tags.`dvc.fingerprint` = '{fingerprint}' and attributes.status = 'FINISHED'",
        max_results=1,
    )  # fmt: skip
    if not found:
        return None
    info = found[0].info
    return RunRecord(info.run_id, run_url(client, info.run_id, home), "", info.end_time)


def _pipeline_runs(client: "MlflowClient", key: str, home: Path) -> "list[Run]":
    return client.search_runs([experiment(client, home)], f"tags.`verdict.pipeline` = '{_tag(key)}'", max_results=1)


def pipeline_run(client: "MlflowClient", run: dict[str, Any], home: Path) -> str:
    """Find or create the run above a pipeline's stages; ``run`` holds its ``pipeline`` and perhaps ``experiment``."""
    key = run["pipeline"]
    if found := _pipeline_runs(client, key, home):
        return found[0].info.run_id
    name = run.get("experiment") or "pipeline " + "-".join(key.split("-")[:2])  # of a flow run's name and an id
    tags = {"mlflow.runName": name[:LONGEST], "verdict.pipeline": _tag(key)}
    created = client.create_run(experiment(client, home), tags=tags)
    if key.startswith("dvc-"):  # nobody closes the run of a bare `dvc repro`
        client.set_terminated(created.info.run_id)
    return created.info.run_id


def close_parent(
    client: "MlflowClient", run: dict[str, Any], home: Path, status: str, reports: Path | None = None
) -> None:
    """Give the pipeline's run of a bare `dvc repro` or `dvc exp run`, which no flow closes, what its stage reported.

    Args:
        run: of the stage.
        status: of the stage; FINISHED changes nothing but KILLED.
        reports: folder with the stage's headline figures and closing table, if it has any.
    """
    if not run["pipeline"].startswith("dvc-"):
        return
    parent, names, now = pipeline_run(client, run, home), Names({}), int(time.time() * 1000)
    figures = flatten(read_object(reports / HEADLINE)) if reports else {}
    log_metrics(client, parent, [(names.allowed(name), value, now, 0) for name, value in figures.items()])
    if reports and (summary := read_summary(reports)):
        log_tags(client, parent, {NOTE: summary})
    if status != "FINISHED" or client.get_run(parent).info.status == "KILLED":  # killed, and resumed since
        client.set_terminated(parent, status)


def _tag(key: str) -> str:
    """Return a pipeline's key as a value that a search can hold: a quote would end the search's string."""
    return allowed_text(re.sub(r"['\"`\\]", "_", key), TAG_LENGTH)


def run_url(client: "MlflowClient", run_id: str, home: Path) -> str:
    """Return the address of a run's page, without a password."""
    return f"{locations.tracking_server(home)}/#/experiments/{experiment(client, home)}/runs/{run_id}?{TRAINING_VIEW}"
