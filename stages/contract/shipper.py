"""python -m stages.contract.shipper HOME: send spools to MLflow until none is left, then exit.

One process serves every stage of a repository (a lock sees to that), so that mlflow is imported once a
pipeline instead of once a stage, and never in a process that trains. When the tracking server does not
answer, spools wait; the next stage starts a shipper again.
"""

import fcntl
import json
import os
import re
import shutil
import sys
import time
import traceback
from pathlib import Path

from stages.contract import places
from stages.contract.background import give_way
from stages.contract.spool import write_json
from stages.contract.starter import started

IDLE_SECONDS = 10.0  # with nothing to send: the next stage of a pipeline comes sooner, and importing mlflow takes 4 s
GIVE_UP_SECONDS = 60.0  # with something to send, nobody writing, and no answer


def main(home: Path) -> None:
    (home / ".verdict").mkdir(exist_ok=True)
    with (home / ".verdict" / "shipper.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        give_way(10)
        _serve(home)


def _serve(home: Path) -> None:
    """Ship every spool again and again until all are gone and no stage is writing."""
    client, last_success, quiet_since = None, time.monotonic(), time.monotonic()
    while True:
        folders = [f for f in sorted(places.spools(home).glob("*"), key=_pipelines_last) if not _dormant(f)]
        if folders:
            quiet_since = time.monotonic()
        elif time.monotonic() - quiet_since > IDLE_SECONDS:
            return
        for folder in folders:
            try:
                client = client or connect(home)
                ship(client, folder, home)
                last_success = time.monotonic()
            except Exception:
                # Whatever the tracker does, the pipeline must not feel it, nor the other spools; see shipper.log.
                traceback.print_exc(limit=1)
        writing = any(_alive(folder) for folder in folders)
        if folders and not writing and time.monotonic() - last_success > GIVE_UP_SECONDS:
            return
        time.sleep(1.0)


def _pipelines_last(folder: Path) -> tuple[bool, str]:
    """A pipeline's run links to its stages' runs, so these are sent first."""
    return folder.name.startswith("pipeline-"), folder.name


def connect(home: Path):
    """A client of the tracker that ``home`` records to. Importing mlflow takes seconds."""
    # One failed attempt is answered at once; without this a log call blocks for minutes (247 s measured).
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    from mlflow import MlflowClient

    # Two processes that make the tables of a new sqlite file at once both fail, and can leave it broken for good.
    (home / ".verdict").mkdir(exist_ok=True)
    with (home / ".verdict" / "mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return MlflowClient(tracking_uri=places.tracking_uri(home))


def ship(client, folder: Path, home: Path) -> None:
    """Send what is new in one spool; delete it once its end has arrived."""
    if folder.name.startswith("pipeline-"):
        if (folder / "end.json").exists():
            _ship_pipeline(client, folder, home)
            shutil.rmtree(folder)
        return
    run, shipped = _read(folder / "run.json"), _read(folder / "shipped.json")
    if not run:
        return
    if shipped.get("uri") != places.tracking_uri(home):
        shipped = {"uri": places.tracking_uri(home), "lines": 0, "run_id": _create_stage_run(client, run, home)}
        write_json(folder / "shipped.json", shipped)
    if not shipped.get("described"):
        _describe(client, run, shipped["run_id"])
        shipped["described"] = True
    if shipped.get("closed") and (_alive(folder) or (folder / "end.json").exists()):
        client.update_run(shipped["run_id"], status="RUNNING")
        shipped["closed"] = False
    end = _read(folder / "end.json")
    shipped["lines"] = _ship_metrics(client, shipped["run_id"], folder, shipped["lines"])
    if end:
        _ship_end(client, run, shipped["run_id"], end, folder, home)
        shutil.rmtree(folder)
        return
    if not _alive(folder) and not shipped.get("closed"):
        client.set_terminated(shipped["run_id"], "KILLED")
        shipped["closed"] = True
    write_json(folder / "shipped.json", shipped)


def _create_stage_run(client, run: dict, home: Path) -> str:
    tags = run["tags"] | {
        "mlflow.runName": run["stage"], "mlflow.parentRunId": _pipeline_run(client, run["pipeline"], home),
        "dvc.stage": run["stage"], "dvc.fingerprint": run["fingerprint"],
    }  # fmt: skip
    return client.create_run(_experiment(client, home), start_time=run["start"], tags=tags).info.run_id


def _describe(client, run: dict, run_id: str) -> None:
    """Parameters, and the data the stage read with DVC's hashes. Repeating it changes nothing."""
    from mlflow.entities import Dataset, DatasetInput, Param

    client.log_batch(run_id, params=[Param(key, value[:6000]) for key, value in run["params"].items()])
    datasets = []
    for path, md5 in run["datasets"].items():
        source = json.dumps({"path": path, "md5": md5})
        datasets.append(DatasetInput(Dataset(name=path, digest=md5, source_type="dvc", source=source)))
    client.log_inputs(run_id, datasets=datasets)


def _ship_metrics(client, run_id: str, folder: Path, sent: int) -> int:
    """Send whole lines after the first ``sent``; return how many have been sent in all. Times were taken when
    the line was written, so that sending one twice changes nothing."""
    from mlflow.entities import Metric

    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    points = [
        Metric(allowed_name(name), value, line["t"], line["s"])
        for line in map(json.loads, lines[sent:])
        for name, value in line["m"].items()
    ]
    for i in range(0, len(points), 1000):  # MLflow's limit for one call
        client.log_batch(run_id, metrics=points[i : i + 1000])
    return len(lines)


def _ship_end(client, run: dict, run_id: str, end: dict, folder: Path, home: Path) -> None:
    from mlflow.entities import Metric

    metrics = [Metric(allowed_name(name), value, end["end"], 0) for name, value in end["metrics"].items()]
    for i in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[i : i + 1000])
    for path, md5 in end["outs"].items():
        client.set_tag(run_id, f"dvc.out.{path}", md5)
    if (folder / "artifacts").exists():
        client.log_artifacts(run_id, str(folder / "artifacts"))
    for path, md5 in end["outs"].items():
        if (home / path / "config.json").exists():
            _log_model_reference(client, run, run_id, path, md5, home)
    client.set_terminated(run_id, end["status"], end_time=end["end"])
    if end["status"] == "FINISHED":
        places.run_records(home).mkdir(parents=True, exist_ok=True)
        record = {"run_id": run_id, "url": _url(client, run_id, home), "stage": run["stage"], "end": end["end"]}
        record["seconds"] = end["metrics"].get("stage_seconds")
        write_json(places.run_records(home) / f"{run['fingerprint']}.json", record)


def _log_model_reference(client, run: dict, run_id: str, path: str, md5: str, home: Path) -> None:
    """The model as a pointer into DVC: weights stay in DVC's cache and remotes, MLflow knows which."""
    reference = {"path": path, "md5": md5, "stage": run["stage"], "fingerprint": run["fingerprint"]}
    client.log_dict(run_id, reference, f"{path.replace('/', '-')}.dvc.json")
    model = client.create_logged_model(
        _experiment(client, home), name=run["stage"], source_run_id=run_id, model_type="transformers",
        tags={"dvc.path": path, "dvc.md5": md5, "dvc.fingerprint": run["fingerprint"]},
    )  # fmt: skip
    client.finalize_logged_model(model.model_id, "READY")


def _ship_pipeline(client, folder: Path, home: Path) -> None:
    from mlflow.entities import Metric

    end = _read(folder / "end.json")
    run_id, now = _pipeline_run(client, end["pipeline"], home), int(time.time() * 1000)
    rows = ["| stage | state | made by |", "|---|---|---|"]
    for stage, state in end["states"].items():
        made_by = _find_run(client, end["fingerprints"].get(stage), home)
        client.set_tag(run_id, allowed_name(f"stage.{stage}.state"), state)
        if made_by:
            client.set_tag(run_id, allowed_name(f"stage.{stage}.run_id"), made_by["run_id"])
        rows.append(f"| {stage} | {state} | {'[run](' + made_by['url'] + ')' if made_by else ''} |")
    client.set_tag(run_id, "mlflow.note.content", "\n".join(rows))
    metrics = [Metric(allowed_name(name), value, now, 0) for name, value in end["metrics"].items()]
    for i in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[i : i + 1000])
    client.log_artifacts(run_id, str(folder / "artifacts"))
    client.set_terminated(run_id, end["status"])


def _find_run(client, fingerprint: str | None, home: Path) -> dict | None:
    """The run that made a stage's result: from this machine's records, or by its tag in MLflow."""
    if fingerprint is None:
        return None
    if record := _read(places.run_records(home) / f"{fingerprint}.json"):
        return record
    found = client.search_runs(
        [_experiment(client, home)], f"tags.`dvc.fingerprint` = '{fingerprint}' and attributes.status = 'FINISHED'",
        max_results=1,
    )  # fmt: skip
    return {"run_id": found[0].info.run_id, "url": _url(client, found[0].info.run_id, home)} if found else None


def _pipeline_run(client, key: str, home: Path) -> str:
    """The run above a pipeline's stages: found by its key, or created."""
    experiment = _experiment(client, home)
    found = client.search_runs([experiment], f"tags.`verdict.pipeline` = '{key}'", max_results=1)
    if found:
        return found[0].info.run_id
    name = "pipeline " + "-".join(key.split("-")[:2])  # of a flow run's name and an id, the name
    run = client.create_run(experiment, tags={"mlflow.runName": name, "verdict.pipeline": key})
    if key.startswith("dvc-"):  # nobody closes the run of a bare `dvc repro`
        client.set_terminated(run.info.run_id)
    return run.info.run_id


def _experiment(client, home: Path) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "verdict")
    found = client.get_experiment_by_name(name)
    if found:
        return found.experiment_id
    # A sqlite store takes its artifact root from the folder it is created in, for ever; a server knows its own.
    local = places.tracking_uri(home).startswith("sqlite:")
    return client.create_experiment(name, artifact_location=(home / "mlruns").as_uri() if local else None)


def _url(client, run_id: str, home: Path) -> str:
    uri = places.tracking_uri(home)
    server = uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"  # where `mlflow ui` listens
    return f"{server}/#/experiments/{_experiment(client, home)}/runs/{run_id}"


def allowed_name(name: str) -> str:
    """A name MLflow accepts: a corpus may have a source called "C++" or "arXiv (cs)"."""
    return re.sub(r"[^/\w.\- :]", "_", name)


def _read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


def _alive(folder: Path) -> bool:
    """Whether the stage that writes this spool is running."""
    run = _read(folder / "run.json")
    if not run or (folder / "end.json").exists():
        return False
    return started(run["pid"]) == run["pid_started"] != ""


def _dormant(folder: Path) -> bool:
    """Whether nothing can be sent: only begun, or a killed stage's, sent as far as it goes until that resumes."""
    if not (folder / "end.json").exists() and not (folder / "run.json").exists():
        return True
    closed = _read(folder / "shipped.json").get("closed")
    return bool(closed) and not _alive(folder) and not (folder / "end.json").exists()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
