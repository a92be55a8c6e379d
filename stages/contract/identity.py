"""A stage's identity: the hash of what DVC would record for it (command, dependency hashes, parameter values).

It keys checkpoints and links a cached stage to the MLflow run that made it. Where a run ended is no part of
it: not the number of GPUs, not the host, not the time.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from stages.contract.errors import UserError


@dataclass(frozen=True)
class Identity:
    stage: str
    fingerprint: str  # sha256, hexadecimal
    deps: dict[str, str]  # path -> DVC's md5
    params: dict[str, object]  # dotted key -> value
    cache: Path  # DVC's cache folder, shared by worktrees and temporary workspaces


def identify(name: str, root: Path) -> Identity:
    """The identity of stage ``name`` of ``root``/dvc.yaml as its inputs stand now.

    Raises:
        UserError: no DVC repository, no such stage, a dependency is missing.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            stage = _load(repo, root, name)
            stage.save_deps()
            deps, params = _inputs(stage)
            cache = cache_folder(repo, root)
    except DvcException as e:
        raise UserError(str(e)) from None
    flat = {key: value for values in params.values() for key, value in values.items()}
    return Identity(name, fingerprint(stage.cmd, deps, params), deps, flat, cache)


def cache_folder(repo, root: Path) -> Path:
    """DVC's cache of ``repo``, the open repository at ``root``."""
    return Path(repo.config["cache"].get("dir") or root / ".dvc" / "cache").absolute()


def fingerprint(cmd: str, deps: dict[str, str], params: dict[str, dict]) -> str:
    return digest({"cmd": cmd, "deps": deps, "params": params})


def locked_fingerprint(entry: dict) -> str:
    """The fingerprint of an entry of dvc.lock; equal to the one of :func:`identify` once the stage has run."""
    deps = {dep["path"]: dep["md5"] for dep in entry.get("deps", [])}
    return fingerprint(entry["cmd"], deps, entry.get("params", {}))


def digest(value) -> str:
    """sha256 of canonical JSON. Raises TypeError for a value without a stable serialization."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def out_hashes(name: str, root: Path) -> dict[str, str]:
    """path -> DVC's md5 of each out as it lies on disk, before DVC has recorded it.

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


def _load(repo, root: Path, name: str):
    return repo.stage.load_one(path=str(root / "dvc.yaml"), name=name)


def _inputs(stage) -> tuple[dict[str, str], dict[str, dict]]:
    from dvc.dependency import ParamsDependency

    deps = {d.def_path: d.hash_info.value for d in stage.deps if not isinstance(d, ParamsDependency)}
    params = {d.def_path: dict(d.hash_info.value) for d in stage.deps if isinstance(d, ParamsDependency)}
    return deps, params
