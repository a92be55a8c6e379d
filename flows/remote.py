"""What other machines computed, from DVC's default remote, so that it is not computed again here.

Data and outs that are recorded but not here are brought before anything is planned, from the cache or the remote; a
stage that would run is first looked for in the remote's run cache, where `dvc push --run-cache` put it.
"""

import contextlib
import logging
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

from flows.graph import address, one_line, upstream_first
from stages.contract.errors import UserError

SILENT: set[str] = set()
"""Repositories whose remote did not answer. Storage libraries ask again for ten seconds and more, this process not."""


def restore(root: Path, warn: Callable[[str], None]) -> list[str]:
    """Bring the data and outs of the repository at ``root`` that dvc.lock and .dvc files record and that are missing.

    Of a stage whose command, deps or params are others than recorded nothing is brought; what is here is left alone,
    changed or not.

    Returns:
        the stages with a command whose outs were brought.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    if not any_missing(root):
        return []
    quiet()
    try:
        with Repo(str(root), _wait_for_lock=True) as repo, repo.lock:
            pull = _answers(repo, warn)
            stages = [stage for stage in upstream_first(repo.index.graph) if _missing(stage)]
            return [address(stage, root) for stage in stages if _bring(repo, stage, pull, warn) and stage.cmd]
    except DvcException:  # the plan, which comes next, says what is wrong
        return []


def any_missing(root: Path) -> bool:
    """Whether a path that dvc.lock or a .dvc file records is not there. Costs no start of DVC."""
    try:
        lock = YAML(typ="safe").load((root / "dvc.lock").read_text(encoding="utf-8"))
        recorded = [root / out["path"] for stage in lock["stages"].values() for out in stage.get("outs", [])]
    except (OSError, ValueError, YAMLError, AttributeError, KeyError, TypeError):  # the plan says what is wrong with it
        recorded = []
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard", "*.dvc"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    recorded += [(root / name).with_suffix("") for name in listed.stdout.splitlines()]
    return not all(path.exists() for path in recorded)


class Recall:
    """Results of stages that ran elsewhere, by their command, deps and params."""

    def __init__(self, root: Path):
        self.root = root
        self.lock = threading.Lock()
        self.ask = _has_default(root)
        self.known = False  # whether the remote's run cache has been read

    def look_for(self, name: str, warn: Callable[[str], None]) -> None:
        """Bring the result of stage ``name`` from the remote to where `dvc repro` finds it, if it is there."""
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        if not self.ask:
            return
        quiet()
        with (
            self.lock,
            contextlib.suppress(DvcException),
            Repo(str(self.root), _wait_for_lock=True) as repo,  # parallel stages take DVC's lock in turn
            repo.lock,
        ):
            if not self.known:
                self.known = True
                self.ask = _answers(repo, warn) and _asked(lambda: _read_runs(repo), repo, warn)
            if self.ask:
                stage = next(stage for stage in repo.index.stages if address(stage, self.root) == name)
                self.ask = _asked(lambda: _pull_run(repo, stage), repo, warn)


def quiet() -> None:
    """Keep DVC from telling what it does as if a person had called it."""
    import dvc  # noqa: F401 (it sets the levels when it is imported)

    for name in ("dvc", "dvc_data", "dvc_objects"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _has_default(root: Path) -> bool:
    from dvc.config import Config, ConfigError

    try:
        return bool(Config(str(root / ".dvc"))["core"].get("remote"))
    except ConfigError as e:
        raise UserError(one_line(e)) from None


def _answers(repo, warn: Callable[[str], None]) -> bool:
    """Whether there is a default remote and it answers."""

    def ask() -> None:
        odb = repo.cloud.get_remote_odb()
        with contextlib.suppress(FileNotFoundError):  # nothing was pushed yet
            odb.fs.ls(odb.path)

    return bool(repo.config["core"].get("remote")) and repo.root_dir not in SILENT and _asked(ask, repo, warn)


def _read_runs(repo) -> None:
    """Copies what is new in the remote's run cache: a small file for each run."""
    from dvc.fs import LocalFileSystem
    from dvc_objects.fs import generic

    remote = repo.cloud.get_remote_odb(hash_name="md5-dos2unix")
    there = remote.fs.join(remote.path, "runs")
    for path in remote.fs.find(there) if remote.fs.exists(there) else ():
        target = Path(repo.cache.legacy.path, remote.fs.relpath(path, remote.path))
        if not target.exists():
            generic.copy(remote.fs, path, LocalFileSystem(), str(target))


def _bring(repo, stage, pull: bool, warn: Callable[[str], None]) -> bool:
    """Whether everything of ``stage`` is here now. Only what is missing is checked out: for the rest DVC would ask
    whether it may be replaced."""
    from dvc.exceptions import CheckoutError

    if not stage.cmd or (not stage.changed_stage() and stage.deps_cached()):
        if pull:
            _asked(lambda: _pull(repo, stage), repo, warn)
        for out in filter(_absent, stage.outs):
            with contextlib.suppress(CheckoutError):
                out.checkout()
    return not _missing(stage)


def _pull_run(repo, stage) -> None:
    """Bring to the cache what the run cache has for ``stage`` as its deps and params are; `dvc repro` checks it out."""
    from dvc.stage.cache import _can_hash

    if not _can_hash(stage):  # without deps or outs, for one: the run cache has nothing of its kind
        return
    stage.save_deps()
    if found := repo.stage_cache._load(stage):
        _pull(repo, repo.stage_cache._create_stage(found, wdir=stage.wdir))


def _pull(repo, stage) -> None:
    for found in stage.get_used_objs().values():
        repo.cloud.pull(found)


def _missing(stage) -> bool:
    return any(map(_absent, stage.outs))


def _absent(out) -> bool:
    return bool(out.hash_info) and not out.exists


def _asked(work: Callable[[], None], repo, warn: Callable[[str], None]) -> bool:
    """Whether the remote answered while ``work`` was done. That something is not there is an answer."""
    from dvc.exceptions import CollectCacheError

    try:
        work()
    except CollectCacheError:
        pass
    except Exception as e:  # every kind of storage has errors of its own
        name = repo.config["core"].get("remote")
        if not name:
            raise
        SILENT.add(repo.root_dir)
        url = repo.config["remote"].get(name, {}).get("url", "it is not configured")
        warn(f"the DVC remote {name} ({url}) does not answer, so nothing is taken from it: {one_line(e)}")
        return False
    return True
