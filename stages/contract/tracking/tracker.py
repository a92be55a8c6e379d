"""MLflow's client as this project uses it: no proxy, no password in a text, and refusals distinguished from no answer.

A refusal is about one value, which is left out while all others arrive, or about everything: then nothing is lost and
spools wait. Importing mlflow takes seconds.
"""

import contextlib
import logging
import math
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from stages.contract.files import locked
from stages.contract.process.loopback import without_proxy
from stages.contract.secrets import redact
from stages.contract.tracking import locations, moved
from stages.contract.tracking.names import allowed_name, allowed_text
from stages.contract.tracking.refusals import Gone, Refused, explain_refusal, is_about_one_value, shortened

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Metric, Param, RunTag

BATCH = {"metrics": 1000, "params": 100, "tags": 100}  # MLflow's limits for one call
# The tag by which MLflow's pages choose between training and agents (mlflow/server/js, ExperimentKind).
KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"
PARAM_LENGTH, TAG_LENGTH, DATASET_LENGTH, DIGEST_LENGTH = 6000, 8000, 500, 36


def connect(home: Path) -> "MlflowClient":
    """Return a client of the tracker that ``home`` records to.

    Raises:
        Exception: whatever MLflow, SQLAlchemy or requests raise; see `explain_refusal`.
    """
    # One failed attempt is answered at once; without this a log call blocks for minutes (247 s measured).
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    without_proxy()
    uri = _logged_in(locations.tracking_uri(home))
    from mlflow import MlflowClient
    from mlflow.store.db import utils

    logging.getLogger(utils.__name__).setLevel(logging.CRITICAL)  # a traceback of what `explain_refusal` says
    utils.MAX_RETRY_COUNT = 1  # of a database that does not answer; with MLflow's 10 it takes 101 s (measured)
    # Two processes that make the tables of a new sqlite file at once both fail, and can leave it broken for good.
    with locked(home / ".verdict" / "mlflow.lock", patience=math.inf):
        if uri == f"sqlite:///{home / 'mlflow.db'}":
            moved.follow(home)
        return MlflowClient(tracking_uri=uri)


def _logged_in(uri: str) -> str:
    """Return ``uri`` without user and password, which go where MLflow reads them and no message quotes them."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def glance(home: Path) -> str:
    """Return why MLflow's local database takes nothing, in a millisecond and without MLflow; "" where nothing shows."""
    database = home / "mlflow.db"
    if locations.tracking_uri(home) != f"sqlite:///{database}" or not database.exists():
        return ""
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", timeout=1, uri=True)) as connection:
            known = connection.execute(
                "SELECT experiment_id, lifecycle_stage FROM experiments WHERE name = ?", (_experiment_name(),)
            ).fetchone()
    except sqlite3.OperationalError:  # locked, or without tables yet
        return ""
    except sqlite3.DatabaseError as error:
        return explain_refusal(error, home)
    if known and known[1] == "deleted":
        return str(_in_the_bin(_experiment_name(), known[0], home))
    return "" if os.access(database, os.W_OK) else explain_refusal(PermissionError("readonly database"), home)


def experiment(client: "MlflowClient", home: Path, name: str | None = None) -> str:
    """Return the id of the experiment ``name`` (MLFLOW_EXPERIMENT_NAME, or verdict), made if there is none.

    Raises:
        Refused: it is in MLflow's bin.
    """
    name = name or _experiment_name()
    known = client.get_experiment_by_name(name)
    if known and known.lifecycle_stage == "deleted":
        raise _in_the_bin(name, known.experiment_id, home)
    if known:
        if KIND not in known.tags:
            client.set_experiment_tag(known.experiment_id, KIND, TRAINING)
        return known.experiment_id
    # A sqlite store takes its artifact root from the folder it is created in, for ever; a server knows its own.
    local = locations.tracking_uri(home).startswith("sqlite:")
    place = (home / "mlruns").as_uri() if local else None
    return client.create_experiment(name, artifact_location=place, tags={KIND: TRAINING})


def logged_models(client: "MlflowClient", md5: str) -> "list[LoggedModel]":
    """Return the models of the experiment that stages logged with DVC's ``md5``."""
    known = client.get_experiment_by_name(_experiment_name())
    hexadecimal = re.sub(r"[^\w.]", "", md5)  # a quote would end the search's string
    return client.search_logged_models([known.experiment_id], f"tags.`dvc.md5` = '{hexadecimal}'") if known else []


def _experiment_name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "verdict"


def _in_the_bin(name: str, number: str | int, home: Path) -> Refused:
    uri = redact(locations.tracking_uri(home))
    return Refused(
        f"MLflow's experiment {name!r} is deleted, so MLflow gets nothing. Restore it (MLFLOW_TRACKING_URI={uri} "
        f"mlflow experiments restore --experiment-id {number}), or set MLFLOW_EXPERIMENT_NAME."
    )


def log_metrics(
    client: "MlflowClient", run_id: str, metrics: Sequence[tuple[str, float, int, int]], model_id: str | None = None
) -> list[str]:
    """Record metrics of a run, and of its model if it has one. Return a line for each that MLflow refuses.

    Args:
        client: of `connect`.
        run_id: of the run.
        metrics: name, value, milliseconds, step.
        model_id: of the run's logged model.
    """
    from mlflow.entities import Metric

    owner = {"model_id": model_id, "run_id": run_id} if model_id else {}
    items = [Metric(name, float(value), t, s, **owner) for name, value, t, s in metrics]
    return _log_all(client, run_id, "metrics", items)


def log_params(client: "MlflowClient", run_id: str, params: dict[str, str]) -> list[str]:
    """Record ``params``. Return a line for each that MLflow refuses."""
    from mlflow.entities import Param

    items = [Param(allowed_name(key), allowed_text(value, PARAM_LENGTH)) for key, value in params.items()]
    return _log_all(client, run_id, "params", items)


def log_tags(client: "MlflowClient", run_id: str, tags: dict[str, str]) -> list[str]:
    """Record ``tags``. Return a line for each that MLflow refuses."""
    from mlflow.entities import RunTag

    return _log_all(client, run_id, "tags", [RunTag(key, value) for key, value in allowed_tags(tags).items()])


def allowed_tags(tags: dict[str, str]) -> dict[str, str]:
    """Return ``tags`` with names and values that MLflow accepts."""
    return {allowed_name(key): allowed_text(value, TAG_LENGTH) for key, value in tags.items()}


def log_artifacts(client: "MlflowClient", run_id: str, folder: Path) -> list[str]:
    """Copy the files of ``folder`` to the run's artifacts. Return a line for each that MLflow refuses."""
    refusals: list[str] = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = allowed_name(file.relative_to(folder).as_posix()).replace(":", "_")  # "a:b" is read as an address
        if (folder / name) != file:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            file = file.rename(folder / name)
        with noting_refusal(client, run_id, f"artifact {name}", refusals):
            client.log_artifact(run_id, str(file), str(Path(name).parent) if "/" in name else None)
    return refusals


@contextlib.contextmanager
def noting_refusal(client: "MlflowClient", run_id: str, what: str, refusals: list[str]) -> Iterator[None]:
    """Add a line to ``refusals`` if MLflow refuses ``what`` the block sends, and go on.

    Raises:
        Gone: the run is deleted. What is not about one value is raised as it is.
    """
    try:
        yield
    except Exception as error:
        if not is_about_one_value(error):
            raise
        check_run(client, run_id)
        refusals.append(f"{what}: {shortened(error)}")


def _log_all(client: "MlflowClient", run_id: str, kind: str, items: "Sequence[Metric | Param | RunTag]") -> list[str]:
    size = BATCH[kind]
    return [line for i in range(0, len(items), size) for line in _log(client, run_id, kind, items[i : i + size])]


def _log(client: "MlflowClient", run_id: str, kind: str, items: "Sequence[Metric | Param | RunTag]") -> list[str]:
    """Send one batch. MLflow refuses it whole for one value, so a refused batch is sent in halves."""
    try:
        client.log_batch(run_id, **{kind: items})
        return []
    except Exception as error:
        if not is_about_one_value(error):
            raise
        if len(items) == 1:
            check_run(client, run_id)
            return [f"{kind[:-1]} {items[0].key}: {shortened(error)}"]
    half = len(items) // 2
    return _log(client, run_id, kind, items[:half]) + _log(client, run_id, kind, items[half:])


def check_run(client: "MlflowClient", run_id: str) -> None:
    """Raise Gone if the run is deleted: MLflow refuses each value then."""
    from mlflow.exceptions import MlflowException

    try:
        known = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise Gone from None
        raise
    if known.info.lifecycle_stage == "deleted":
        raise Gone
