"""Turn a spool into an MLflow run: a stage's, or the pipeline's run above it. Sending one twice changes nothing."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contract.secrets import redact
from stages.contract.tracking import locations
from stages.contract.tracking.names import LONGEST, Names, allowed_name, allowed_text
from stages.contract.tracking.parents import close_parent, pipeline_run, run_url, ship_pipeline
from stages.contract.tracking.refusals import Gone, status
from stages.contract.tracking.spool import MODEL_FIGURES, Owner, RunRecord, flatten, read_as, read_object, write_json
from stages.contract.tracking.tracker import (
    DATASET_LENGTH,
    DIGEST_LENGTH,
    allowed_tags,
    check_run,
    experiment,
    log_artifacts,
    log_metrics,
    log_params,
    log_tags,
    logged_models,
    noting_refusal,
)  # fmt: skip

if TYPE_CHECKING:
    from mlflow import MlflowClient

SHOWN = 3  # refused values that a line names


def ship(client: "MlflowClient", folder: Path, home: Path) -> list[str]:
    """Send the new lines of one spool; delete it once its end has arrived. Return a line if MLflow refuses a part.

    A run that was deleted meanwhile, or with its whole database, is made once more.
    """
    ship_one = _ship_pipeline if folder.name.startswith("pipeline-") else _ship_stage
    try:
        return ship_one(client, folder, home)
    except Gone:
        pass
    except Exception as error:
        run_id = read_object(folder / "shipped.json").get("run_id")
        if not run_id or status(error) not in (400, 404):
            raise
        try:
            check_run(client, run_id)
        except Gone:
            pass
        else:
            raise
    experiment(client, home)  # in the bin it takes its runs along, and gives them back
    (folder / "shipped.json").unlink(missing_ok=True)
    return ship_one(client, folder, home)


def alive(folder: Path) -> bool:
    """Whether the process that writes this spool is running."""
    owner = read_as(folder / "run.json", Owner) or read_as(folder / "begin.json", Owner)
    return owner is not None and not (folder / "end.json").exists() and owner.alive()


def dormant(folder: Path) -> bool:
    """Whether nothing can be sent: only begun, or a killed stage's, sent as far as it goes until that resumes."""
    if (folder / "end.json").exists():
        return False
    if folder.name.startswith("pipeline-"):
        return not (folder / "begin.json").exists() or alive(folder) or _has_stages_at_work(folder)
    closed = read_object(folder / "shipped.json").get("closed")
    return not (folder / "run.json").exists() or (bool(closed) and not alive(folder))


def _has_stages_at_work(folder: Path) -> bool:
    """Whether a stage of this pipeline runs, which outlives a killed flow by some seconds."""
    key = read_object(folder / "begin.json").get("pipeline")
    runs = [path for path in folder.parent.glob("*/run.json") if read_object(path).get("pipeline") == key]
    return any(alive(path.parent) for path in runs)


def _ship_stage(client: "MlflowClient", folder: Path, home: Path) -> list[str]:
    run, shipped = read_object(folder / "run.json"), read_object(folder / "shipped.json")
    if not run:
        return []
    before, refusals = json.dumps(shipped), []
    uri = redact(locations.tracking_uri(home))
    if shipped.get("uri") != uri:
        shipped = {"uri": uri, "lines": 0, "run_id": _create_stage_run(client, run, home)}
        write_json(folder / "shipped.json", shipped)
    run_id = shipped["run_id"]
    if not shipped.get("described"):
        refusals += _describe(client, run, run_id)
        shipped["described"] = True
    end = read_object(folder / "end.json")
    if shipped.get("closed") and (alive(folder) or end):
        client.update_run(run_id, status="RUNNING")
        shipped["closed"] = False
    names = Names(shipped.setdefault("names", {}))
    lines, more = _ship_metrics(client, run_id, folder, shipped["lines"], names)
    shipped["lines"], refusals = lines, refusals + more
    if end:
        refusals += _ship_end(client, run, run_id, end, folder, home, names)
        shutil.rmtree(folder)
        return _summary(run["stage"], refusals)
    if not alive(folder) and not shipped.get("closed"):
        client.set_terminated(run_id, "KILLED")
        close_parent(client, run, home, "KILLED")
        shipped["closed"] = True
    if json.dumps(shipped) != before:
        write_json(folder / "shipped.json", shipped)
    return _summary(run["stage"], refusals)


def _ship_pipeline(client: "MlflowClient", folder: Path, home: Path) -> list[str]:
    return _summary("the pipeline", ship_pipeline(client, folder, home))


def _summary(name: str, refusals: list[str]) -> list[str]:
    """One line for all ``refusals`` of a spool."""
    if not refusals:
        return []
    values = "1 value" if len(refusals) == 1 else f"{len(refusals)} values"
    more = f"; {len(refusals) - SHOWN} more" if len(refusals) > SHOWN else ""
    return [f"MLflow refuses {values} of {name}, all others arrived: {'; '.join(refusals[:SHOWN])}{more}"]


def _create_stage_run(client: "MlflowClient", run: dict[str, Any], home: Path) -> str:
    tags = run["tags"] | {
        "mlflow.runName": run["stage"][:LONGEST], "mlflow.parentRunId": pipeline_run(client, run, home),
        "dvc.stage": run["stage"], "dvc.fingerprint": run["fingerprint"],
    }  # fmt: skip
    tags |= {"dvc.experiment": run["experiment"]} if run.get("experiment") else {}
    return client.create_run(experiment(client, home), start_time=run["start"], tags=allowed_tags(tags)).info.run_id


def _describe(client: "MlflowClient", run: dict[str, Any], run_id: str) -> list[str]:
    """Record parameters, and the data the stage read with DVC's hashes. Repeating it changes nothing."""
    from mlflow.entities import Dataset, DatasetInput

    refusals = log_params(client, run_id, run["params"])
    for path, md5 in run["datasets"].items():
        name, source = allowed_text(path, DATASET_LENGTH), json.dumps({"path": path, "md5": md5})
        dataset = Dataset(name=name or "unnamed", digest=md5[:DIGEST_LENGTH], source_type="dvc", source=source)
        with noting_refusal(client, run_id, f"dataset {name}", refusals):
            client.log_inputs(run_id, datasets=[DatasetInput(dataset)])
    return refusals


def _ship_metrics(client: "MlflowClient", run_id: str, folder: Path, sent: int, names: Names) -> tuple[int, list[str]]:
    """Send whole lines after the first ``sent``; return how many have been sent in all, and what was refused."""
    # Times were taken when the line was written, so that sending one twice changes nothing.
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    points, refusals = [], []
    for number, line in enumerate(lines[sent:], sent + 1):
        try:
            point = json.loads(line)
            points += [(names.allowed(name), value, point["t"], point["s"]) for name, value in point["m"].items()]
        except (ValueError, KeyError, TypeError, AttributeError):  # cut short by a full disk
            refusals.append(f"line {number} of metrics.jsonl cannot be read")
    return len(lines), refusals + log_metrics(client, run_id, points)


def _ship_end(
    client: "MlflowClient",
    run: dict[str, Any],
    run_id: str,
    end: dict[str, Any],
    folder: Path,
    home: Path,
    names: Names,
) -> list[str]:
    metrics = [(names.allowed(name), value, end["end"], 0) for name, value in end["metrics"].items()]
    models = [(path, md5) for path, md5 in end["outs"].items() if (home / path / "config.json").exists()]
    model_id = _log_model(client, run, run_id, *models[0], home) if models else None  # shown with the stage's metrics
    refusals = log_metrics(client, run_id, metrics, model_id)
    refusals += log_tags(client, run_id, {f"dvc.out.{path}": md5 for path, md5 in end["outs"].items()})
    failure = None
    try:
        refusals += log_artifacts(client, run_id, folder / "artifacts")
    except Exception as error:  # the artifacts' store may be another server: the run is closed all the same
        failure = error
    _log_figures(client, run, end["end"], folder / "artifacts" / MODEL_FIGURES)
    client.set_terminated(run_id, end["status"], end_time=end["end"])
    close_parent(client, run, home, end["status"], folder / "artifacts")
    if failure:
        raise failure
    if end["status"] == "FINISHED":
        locations.run_records(home).mkdir(parents=True, exist_ok=True)
        seconds = end["metrics"].get("stage_seconds")
        record = RunRecord(run_id, run_url(client, run_id, home), run["stage"], end["end"], seconds)
        write_json(locations.run_records(home) / f"{run['fingerprint']}.json", asdict(record))
    return refusals


def _log_figures(client: "MlflowClient", run: dict[str, Any], at: int, path: Path) -> None:
    """Record the figures in ``path``, by model, with the models that the stage read and their runs."""
    for folder, figures in read_object(path).items():
        for model in logged_models(client, str(run["datasets"].get(folder))):
            values = [(name, value, at, 0) for name, value in flatten(figures).items()]
            log_metrics(client, model.source_run_id, values, model.model_id)


def _log_model(client: "MlflowClient", run: dict[str, Any], run_id: str, path: str, md5: str, home: Path) -> str:
    """Record the model in ``path`` as a pointer into DVC, which keeps the weights, and return its id."""
    reference = {"path": path, "md5": md5, "stage": run["stage"], "fingerprint": run["fingerprint"]}
    client.log_dict(run_id, reference, allowed_name(f"{path.replace('/', '-')}.dvc.json").replace(":", "_"))
    tags = {"dvc.path": path, "dvc.md5": md5, "dvc.fingerprint": run["fingerprint"]}
    number = experiment(client, home)
    sent = client.search_logged_models([number], f"source_run_id = '{run_id}'")  # by a shipper that was killed
    model = sent[0] if sent else client.create_logged_model(
        number, name=run["stage"], source_run_id=run_id, tags=tags, model_type="transformers"
    )  # fmt: skip
    client.finalize_logged_model(model.model_id, "READY")
    return model.model_id
