"""Record a sweep in MLflow: a run for the study, a child run for each trial, and their parallel coordinates."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flows.sweeps.space import as_yaml
from stages.contract.tracking import locations, pipelines, tracker
from stages.contract.tracking.names import allowed_name
from stages.contract.tracking.refusals import explain_refusal

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from optuna import Study
    from optuna.trial import FrozenTrial

EXPERIMENT = "verdict-sweeps"


def mirror_study(repository: Path, name: str, study: "Study", metric: str, warn: Callable[[str], None]) -> None:
    """Bring MLflow's runs of Optuna's ``study`` up to date.

    If MLflow does not answer or refuses a part, call ``warn`` with one line; the next call records what this one could
    not.
    """
    if pipelines.is_off():
        return
    home = locations.home(repository)
    try:
        client = tracker.connect(home)
        experiment = tracker.experiment(client, home, EXPERIMENT)
        parent = _run(client, experiment, study, name, {})
        for trial in study.trials:
            if trial.state.is_finished() and ("experiment" in trial.user_attrs or trial.state.name == "PRUNED"):
                for line in _trial(client, experiment, study, trial, name, metric, parent):
                    warn(f"MLflow refuses a part of the sweep: {line}")
        _plots(client, parent, study, metric)
        client.set_terminated(parent)
    except Exception as e:  # whatever fails here, the trials have their results
        warn(f"the sweep is not recorded in MLflow. {explain_refusal(e, home)}")


def _run(client: "MlflowClient", experiment: str, study: "Study", key: str, tags: dict[str, str]) -> str:
    """Return the id of the MLflow run that the study notes under ``key``; create it if there is none."""
    noted = study.user_attrs.get(f"mlflow {key}")
    if noted and client.search_runs([experiment], f"attributes.run_id = '{noted}'"):
        return noted
    run = client.create_run(experiment, tags=tracker.allowed_tags({"mlflow.runName": key} | tags)).info.run_id
    study.set_user_attr(f"mlflow {key}", run)
    return run


def _trial(
    client: "MlflowClient", experiment: str, study: "Study", trial: "FrozenTrial", name: str, metric: str, parent: str
) -> list[str]:
    """Record an ended trial, once. Return a line for each value that MLflow refuses."""
    key = trial.user_attrs.get("experiment", f"{name}-{trial.number}")
    if f"mlflow {key} recorded" in study.user_attrs:
        return []
    tags = {"mlflow.parentRunId": parent, "state": trial.state.name}
    tags |= {"dvc.experiment": key} if "experiment" in trial.user_attrs else {}
    run = _run(client, experiment, study, key, tags)
    at = int(trial.datetime_complete.timestamp() * 1000)  # the same point at the same time is recorded once
    metrics = [("watched", value, at, step) for step, value in trial.intermediate_values.items()]
    if trial.state.name == "COMPLETE":
        metrics.append((allowed_name(metric), trial.value, at, 0))
    refusals = tracker.log_metrics(client, run, metrics)
    refusals += tracker.log_params(client, run, {name: as_yaml(value) for name, value in trial.params.items()})
    client.set_terminated(run)
    study.set_user_attr(f"mlflow {key} recorded", True)
    return refusals


def _plots(client: "MlflowClient", run: str, study: "Study", metric: str) -> None:
    """Log Optuna's plots, as pages that need no network."""
    from optuna import visualization

    done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    if len(done) < 2:
        return
    plots = visualization.plot_parallel_coordinate, visualization.plot_optimization_history
    for name, plot in zip(("parallel_coordinates", "history"), plots, strict=True):
        page = plot(study, target=lambda trial: trial.value, target_name=metric).to_html(include_plotlyjs=True)
        client.log_text(run, page, f"{name}.html")
