"""Register models in MLflow: versions that point into git and DVC and hold no weights.

The aliases are `champion`, the model in use, and `challenger`, the last one that the gate compared with it. A version's
tags are its commit and DVC's hash of the model (`commit`, `model_md5`), DVC's hashes of the data (`dvc.PATH`), its
figures, the champion before it (`previous`) and the commit that rolled it back (`rolled_back`).
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.contract.errors import UserError
from stages.contract.secrets import redact
from stages.contract.tracking import locations, refusals, tracker
from stages.contract.tracking.names import LONGEST, allowed_name, allowed_text

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"
VALUE_LENGTH = 100_000  # characters of a tag's value, MLflow's limit


@dataclass(frozen=True)
class Version:
    """A version of the registered model."""

    number: str
    tags: dict[str, str]


def name() -> str:
    """Return the registered model's name. Raises UserError if MLflow does not allow VERDICT_MODEL."""
    stated = os.environ.get("VERDICT_MODEL") or "verdict"
    if stated != allowed_name(stated) or set(stated) & set("/:") or not stated.strip():
        raise UserError(
            f"VERDICT_MODEL is {stated!r}, which MLflow does not take as a model's name. "
            f"Use letters, digits, '_', '-', '.' and spaces, at most {LONGEST} characters."
        )
    return stated


@contextmanager
def registry_client(home: Path) -> "Iterator[MlflowClient]":
    """Open a client of the registry. Raises UserError, in the block too, if MLflow does not answer or refuses."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    name()
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it logs every table it creates
    try:
        yield tracker.connect(home)
    except (MlflowException, SQLAlchemyError, OSError, ImportError, refusals.Refused) as e:
        what = "refuses" if refusals.is_refusal(e) else "does not answer"
        raise UserError(
            f"the model registry at {redact(locations.tracking_uri(home))} {what}, so no alias was moved. "
            f"{refusals.explain_refusal(e, home)} "
            "The trained model is kept; run again afterwards."
        ) from None


def by_alias(client: "MlflowClient", alias: str) -> Version | None:
    """Return the version with ``alias``, if there is one."""
    from mlflow.exceptions import MlflowException

    try:
        return _version(client.get_model_version_by_alias(name(), alias))
    except MlflowException as e:
        if e.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def register_version(client: "MlflowClient", source: str, tags: dict[str, str]) -> Version:
    """Make the version with the ``model_md5`` of ``tags`` the challenger and return it.

    It is the newest that exists, with ``tags`` renewed, or a new one. A repeated call changes nothing.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name())
    except MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    same = client.search_model_versions(f"name = '{name()}' and tags.model_md5 = '{tags['model_md5']}'")
    if same:
        version = max(map(_version, same), key=lambda v: int(v.number))
    else:
        model = {"model_md5": tags["model_md5"]}  # from the first, so that a repeated call finds the version
        logged = tracker.logged_models(client, tags["model_md5"])  # whose figures MLflow shows with the version
        ids = {"run_id": logged[0].source_run_id, "model_id": logged[0].model_id} if logged else {}
        version = _version(client.create_model_version(name(), source=source, tags=model, **ids))
    mark(client, version.number, tags)
    point(client, CHALLENGER, version.number)
    return _version(client.get_model_version(name(), version.number))


def mark(client: "MlflowClient", version: str, tags: dict[str, str]) -> None:
    """Give the model's ``version`` these ``tags``."""
    for key, value in tags.items():
        client.set_model_version_tag(name(), version, allowed_name(key), allowed_text(value, VALUE_LENGTH))


def point(client: "MlflowClient", alias: str, version: str) -> None:
    """Move the model's ``alias`` to ``version``."""
    client.set_registered_model_alias(name(), alias, version)


def tag(version: Version, key: str) -> str:
    """Return a tag. Raises UserError for a version without it: one that `flows.retrain` has not promoted."""
    if key not in version.tags:
        raise UserError(
            f"version {version.number} of {name()} has no tag {key!r}, so it was not promoted by flows.retrain and "
            "cannot be compared with. Give the alias to a version that was, or remove it."
        )
    return version.tags[key]


def _version(version: "ModelVersion") -> Version:
    return Version(str(version.version), dict(version.tags))  # stores differ in whether it is a number
