"""A sweep in MLflow: a run for the study, a run below it for each trial, and their parallel coordinates."""

import os
from collections.abc import Callable
from pathlib import Path

from flows.space import said
from stages.contract import places

EXPERIMENT = "verdict-sweeps"
BATCH = 1000  # metrics that MLflow takes at once


def show(repository: Path, name: str, study, metric: str, warn: Callable[[str], None]) -> None:
    """Bring MLflow's runs of Optuna's ``study`` up to date. If MLflow does not answer, ``warn`` is told, and the next
    call does what this one could not."""
    if os.environ.get("VERDICT_TRACKING") == "off":
        return
    from stages.contract.shipper import connect

    home = places.home(repository)
    try:
        client = connect(home)
        experiment = _experiment(client)
        parent = _run(client, experiment, study, name, {})
        for trial in study.trials:
            if trial.state.is_finished() and ("experiment" in trial.user_attrs or trial.state.name == "PRUNED"):
                _trial(client, experiment, study, trial, name, metric, parent)
        _plots(client, parent, study, metric)
        client.set_terminated(parent)
    except Exception as e:  # whatever the tracker or a plot does, the trials have their results
        warn(f"MLflow at {places.tracking_uri(home)} was not told of the sweep: {' '.join(str(e).split())[:300]}")


def _experiment(client) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    return found.experiment_id if found else client.create_experiment(EXPERIMENT)


def _run(client, experiment: str, study, key: str, tags: dict[str, str]) -> str:
    """The id of the run that the study notes under ``key``, made if there is none."""
    noted = study.user_attrs.get(f"mlflow {key}")
    if noted and client.search_runs([experiment], f"attributes.run_id = '{noted}'"):
        return noted
    run = client.create_run(experiment, tags={"mlflow.runName": key} | tags).info.run_id
    study.set_user_attr(f"mlflow {key}", run)
    return run


def _trial(client, experiment: str, study, trial, name: str, metric: str, parent: str) -> None:
    from mlflow.entities import Metric, Param

    from stages.contract.shipper import allowed_name

    key = trial.user_attrs.get("experiment", f"{name}-{trial.number}")
    if f"mlflow {key} told" in study.user_attrs:
        return
    tags = {"mlflow.parentRunId": parent, "state": trial.state.name}
    tags |= {"dvc.experiment": key} if "experiment" in trial.user_attrs else {}
    run = _run(client, experiment, study, key, tags)
    at = int(trial.datetime_complete.timestamp() * 1000)  # the same point at the same time is recorded once
    metrics = [Metric("watched", value, at, step) for step, value in trial.intermediate_values.items()]
    if trial.state.name == "COMPLETE":
        metrics.append(Metric(allowed_name(metric), trial.value, at, 0))
    for first in range(0, len(metrics), BATCH):
        client.log_batch(run, metrics[first : first + BATCH])
    client.log_batch(run, params=[Param(key, said(value)) for key, value in trial.params.items()])
    client.set_terminated(run)
    study.set_user_attr(f"mlflow {key} told", True)


def _plots(client, run: str, study, metric: str) -> None:
    """Optuna's plots, as pages that need no network."""
    from optuna import visualization

    done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    if len(done) < 2:
        return
    plots = visualization.plot_parallel_coordinate, visualization.plot_optimization_history
    for name, plot in zip(("parallel_coordinates", "history"), plots, strict=True):
        page = plot(study, target=lambda trial: trial.value, target_name=metric).to_html(include_plotlyjs=True)
        client.log_text(run, page, f"{name}.html")
