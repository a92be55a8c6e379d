"""The models in MLflow's registry: versions that point into git and DVC and hold no weights.

The aliases are `champion`, the model in use, and `challenger`, the last one that was measured against it. A version's
tags say which commit and which DVC hash it is (`commit`, `model_md5`), DVC's hashes of the data (`dvc.PATH`), what it
scored, which version was champion before (`previous`) and that it was rolled back (`rolled_back`).
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stages.contract import places
from stages.contract.errors import UserError

CHAMPION, CHALLENGER = "champion", "challenger"


@dataclass(frozen=True)
class Version:
    """A version of the registered model."""

    number: str
    tags: dict[str, str]


def name() -> str:
    """The registered model's name."""
    return os.environ.get("VERDICT_MODEL", "verdict")


@contextmanager
def connected(home: Path) -> Iterator:
    """A client of the registry.

    Raises:
        UserError: from the block too: MLflow does not answer, or refuses.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    from stages.contract.shipper import connect

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table it makes
    try:
        yield connect(home)
    except (MlflowException, SQLAlchemyError, OSError) as e:
        said = " ".join(str(e).split())[:300]
        raise UserError(
            f"the model registry at {places.tracking_uri(home)} does not answer, so no alias was moved: {said} "
            "What was trained is kept; run again when it does."
        ) from None


def by_alias(client, alias: str) -> Version | None:
    """The version with ``alias``, if there is one."""
    from mlflow.exceptions import MlflowException

    try:
        return _version(client.get_model_version_by_alias(name(), alias))
    except MlflowException as e:
        if e.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def register(client, source: str, tags: dict[str, str]) -> Version:
    """The version with the ``model_md5`` of ``tags``: the newest that is there, with ``tags`` renewed, or a new one.

    It becomes `challenger`. Repeating it changes nothing.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name())
    except MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = client.search_model_versions(f"name = '{name()}' and tags.model_md5 = '{tags['model_md5']}'")
    if found:
        version = max(map(_version, found), key=lambda v: int(v.number))
        mark(client, version.number, tags)
    else:
        version = _version(client.create_model_version(name(), source=source, tags=tags))
    point(client, CHALLENGER, version.number)
    return _version(client.get_model_version(name(), version.number))


def mark(client, version: str, tags: dict[str, str]) -> None:
    for key, value in tags.items():
        client.set_model_version_tag(name(), version, key, value)


def point(client, alias: str, version: str) -> None:
    client.set_registered_model_alias(name(), alias, version)


def tag(version: Version, key: str) -> str:
    """Raises UserError for a version without this tag: one that `flows.retrain` has not promoted."""
    if key not in version.tags:
        raise UserError(
            f"version {version.number} of {name()} has no tag {key!r}, so it was not promoted by flows.retrain and "
            "cannot be compared with. Give the alias to a version that was, or remove it."
        )
    return version.tags[key]


def _version(found) -> Version:
    return Version(str(found.version), dict(found.tags))  # stores differ in whether it is a number
