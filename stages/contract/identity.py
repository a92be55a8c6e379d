"""Compute a stage's identity: the hash of the command, dependency hashes and parameter values that DVC records for it.

It keys checkpoints and links a cached stage to the MLflow run that made it. The number of GPUs, the host and the time
are no part of it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, TypeAdapter

from stages.contract.errors import UserError, one_line, shorten
from stages.contract.inputs import shown, walk
from stages.contract.yaml_file import parse_yaml, read_text, walk_values

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import Stage

MOST_LOCKED = 1_000_000  # values of a dvc.lock
HIDDEN_FROM_RUN_CACHE = ("size", "nfiles")


@dataclass(frozen=True)
class Identity:
    """A stage's command, dependencies and parameters, as its fingerprint hashes them."""

    stage: str
    fingerprint: str  # sha256, hexadecimal
    deps: dict[str, str]  # path -> DVC's md5
    params: dict[str, object]  # dotted key -> value
    cache: Path  # DVC's cache folder, shared by worktrees and temporary workspaces


def identify(name: str, root: Path) -> Identity:
    """Return the identity of stage ``name`` of ``root``/dvc.yaml as its inputs stand now.

    Raises:
        UserError: no DVC repository, no such stage, a dependency is missing or is none that DVC hashes.
    """
    with opened(name, root) as stage:
        return identity_of(stage, root)


def matrix_name(words: list[str], root: Path) -> str:
    """Return DVC's name of the stage of ``root``/dvc.yaml whose command ends in ``words``; see dvc.yaml's `matrix`.

    Raises:
        UserError: no DVC repository, or no such stage.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            stages = repo.stage.load_all(path=str(root / "dvc.yaml"))
            names = [stage.name for stage in stages if str(stage.cmd).split()[-len(words) :] == words]
    except (DvcException, OSError) as e:
        raise UserError(one_line(e)) from None
    if not names:
        raise UserError(
            f"dvc.yaml has no stage with the command {shorten(' '.join(words))!r}. Run stages with `dvc repro`."
        )
    return str(names[0])


@contextmanager
def opened(name: str, root: Path) -> "Iterator[Stage]":
    """Yield DVC's stage ``name`` of the repository at ``root``, its inputs checked. Raises UserError as `identify`."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            stage = _load(repo, root, name)
            check_inputs(stage)
            yield stage
    except (DvcException, OSError) as e:
        raise UserError(one_line(e)) from None


def identity_of(stage: "Stage", root: Path) -> Identity:
    """Return the identity of DVC's ``stage`` of an open repository; inputs that DVC does not know are hashed."""
    stage.save_deps()
    deps, params = _inputs(stage)
    flat = {key: value for values in params.values() for key, value in values.items()}
    cache = cache_folder(stage.repo, root)
    return Identity(stage.name, fingerprint(stage.cmd, deps, params), deps, flat, cache)


def is_code(path: str) -> bool:
    """Whether the dep ``path`` is code of this repository, not data."""
    return path.endswith(".py") or Path(path).is_relative_to("stages")


def check_inputs(stage: "Stage") -> None:
    """Raise UserError if the stage would read a file that DVC does not hash, or cannot hash."""
    for path in input_paths(stage):
        for file in walk(path):
            if stage.repo.dvcignore.is_ignored_file(str(file)):
                raise UserError(
                    f"{shown(file)} is an input that .dvcignore hides from DVC. Move it, or change .dvcignore."
                )


def input_paths(stage: "Stage") -> list[Path]:
    """Return the local files and folders that DVC's ``stage`` depends on, without params.yaml.

    They are relative to the current folder if they lie below it.
    """
    from dvc.dependency import ParamsDependency

    paths = [
        Path(dep.fs_path) for dep in stage.deps if dep.protocol == "local" and not isinstance(dep, ParamsDependency)
    ]
    here = Path.cwd()
    return [path.relative_to(here) if path.is_relative_to(here) else path for path in paths]


def cache_folder(repo: "Repo", root: Path) -> Path:
    """Return the folder of DVC's cache of ``repo``, the open repository at ``root``."""
    return Path(repo.config["cache"].get("dir") or root / ".dvc" / "cache").absolute()


def fingerprint(cmd: str | list[str], deps: Mapping[str, str | None], params: Mapping[str, dict[str, Any]]) -> str:
    """Return the hash of a stage's command, of its dependencies by path and of its parameters by file."""
    return digest({"cmd": cmd, "deps": deps, "params": params})


def locked_fingerprint(entry: dict[str, Any]) -> str:
    """Return the fingerprint of an entry of dvc.lock; equal to the one of `identify` once the stage has run."""
    deps = {dep["path"]: dep.get("md5") for dep in entry.get("deps", [])}
    return fingerprint(entry["cmd"], deps, entry.get("params", {}))


def locked_stages(text: str, where: str | Path = "dvc.lock") -> dict[str, dict[str, Any]]:
    """Return the stages of ``text``, the content of a dvc.lock, by name; each has cmd, deps, params and outs.

    Raises:
        UserError: it is no such file.
    """
    lock = parse_yaml(text, where, most=MOST_LOCKED)
    stages = lock.get("stages", {}) if isinstance(lock, dict) else lock
    try:
        for entry in TypeAdapter(dict[str, _Entry]).validate_python(stages or {}).values():
            digest(entry.params)
    except (TypeError, ValueError) as e:  # pydantic's is a ValueError
        raise UserError(
            f"{where}: not what DVC writes ({shorten(e, 100)}). Restore it with git, or remove it: "
            "results are then looked for in DVC's run cache."
        ) from None
    return stages or {}


def recorded_stages(root: Path) -> dict[str, dict[str, Any]]:
    """Return the stages of ``root``'s dvc.lock; none if it is missing or damaged, of which the plan says more."""
    with suppress(FileNotFoundError, UserError):
        return locked_stages(read_text(root / "dvc.lock"))
    return {}


class _Item(BaseModel):
    path: str
    md5: str | None = None


class _Entry(BaseModel):
    """A stage in dvc.lock, as far as it is read here."""

    cmd: str | list[str]
    deps: list[_Item] = []
    outs: list[_Item] = []
    params: dict[str, dict[str, Any]] = {}


def digest(value: object) -> str:
    """Return the sha256 of canonical JSON. Raises TypeError for a value without a stable serialization."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def hidden_from_run_cache(raw: Any) -> Iterator[str]:
    """Yield the dotted key of every ``size`` and ``nfiles`` in ``raw``, at any depth.

    DVC removes both from the key of its run cache to ignore the size of files; it does not look where they stand.
    """
    return (dotted for dotted, key, _ in walk_values(raw) if key in HIDDEN_FROM_RUN_CACHE)


def out_hashes(name: str, root: Path) -> dict[str, str]:
    """Return DVC's md5 of each out by path, as it lies on disk before DVC has recorded it.

    The hashes land in DVC's state database, so that DVC does not read the files a second time.
    """
    from dvc.repo import Repo

    hashes = {}
    with Repo(str(root)) as repo:
        for out in _load(repo, root, name).outs:
            if out.exists:
                _, _, tree = out._build(out.cache, out.fs_path, out.fs, out.hash_name, dry_run=True)
                hashes[out.def_path] = tree.hash_info.value
    return hashes


def _load(repo: "Repo", root: Path, name: str) -> "Stage":
    return repo.stage.load_one(path=str(root / "dvc.yaml"), name=name)


def _inputs(stage: "Stage") -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    from dvc.dependency import ParamsDependency

    deps = {d.def_path: d.hash_info.value for d in stage.deps if not isinstance(d, ParamsDependency)}
    params = {d.def_path: dict(d.hash_info.value) for d in stage.deps if isinstance(d, ParamsDependency)}
    return deps, params
