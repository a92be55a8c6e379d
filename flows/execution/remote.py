"""Fetch other machines' results from DVC's default remote, so that they are not computed again here.

Recorded data and outs that are missing are restored before anything is planned, from the cache or the remote. A stage
that would run is first looked up in the remote's run cache, which `dvc push --run-cache` fills.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from flows.execution.graph import address, graph_of, open_repo, plan_stages, quiet_dvc, upstream_first
from flows.planned import Stage
from stages.contract.errors import one_line
from stages.contract.secrets import redact

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import Stage as DvcStage

UNREACHABLE: set[str] = set()
"""Repositories whose remote did not answer this process. A storage library retries for ten seconds and more, so the
process asks once."""


def restore_and_plan(
    root: Path, targets: Iterable[str], force: Iterable[str], warn: Callable[[str], None]
) -> tuple[list[str], list[Stage]]:
    """Restore missing outs of the repository at ``root``, then plan.

    Outs and data that dvc.lock and .dvc files record and that are missing come from the cache or the remote. A stage
    whose command, deps or params are others than recorded is skipped; existing files stay as they are, changed or not.

    Returns:
        the stages with a command whose outs were restored; the plan.

    Raises:
        UserError, Occupied: see :func:`open_repo` and :func:`plan_stages`.
    """
    with open_repo(root) as repo:
        missing = [stage for stage in upstream_first(graph_of(repo)) if _missing(stage)]
        pull = bool(missing) and _answers(repo, warn)
        restored = [stage for stage in missing if _restore(repo, stage, pull, warn)]
        names = [address(stage, root) for stage in restored if stage.cmd]
        return names, plan_stages(repo, list(targets), set(force))


class Recall:
    """Look up results of stages that ran on other machines, by their command, deps and params."""

    def __init__(self, root: Path) -> None:
        from dvc.config import Config

        self.root = root
        self.lock = threading.Lock()
        self.ask = bool(Config(str(root / ".dvc"))["core"].get("remote"))
        self.known = False  # whether the remote's run cache has been copied

    def look_for(self, name: str, warn: Callable[[str], None]) -> None:
        """Fetch the result of stage ``name`` from the remote's run cache, if it is there; `dvc repro` then finds it."""
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        if not self.ask:
            return
        quiet_dvc()
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


def _answers(repo: "Repo", warn: Callable[[str], None]) -> bool:
    """Whether there is a default remote and it answers."""

    def ask() -> None:
        odb = repo.cloud.get_remote_odb()
        with contextlib.suppress(FileNotFoundError):  # nothing was pushed yet
            odb.fs.ls(odb.path)

    return bool(repo.config["core"].get("remote")) and repo.root_dir not in UNREACHABLE and _asked(ask, repo, warn)


def _read_runs(repo: "Repo") -> None:
    """Copy new entries of the remote's run cache: a small file for each run."""
    from dvc.fs import LocalFileSystem
    from dvc_objects.fs import generic

    remote = repo.cloud.get_remote_odb(hash_name="md5-dos2unix")
    there = remote.fs.join(remote.path, "runs")
    for path in remote.fs.find(there) if remote.fs.exists(there) else ():
        target = Path(repo.cache.legacy.path, remote.fs.relpath(path, remote.path))
        if not target.exists():
            generic.copy(remote.fs, path, LocalFileSystem(), str(target))


def _restore(repo: "Repo", stage: "DvcStage", pull: bool, warn: Callable[[str], None]) -> bool:
    """Restore missing outs of ``stage``; return whether all are here now.

    Only missing ones are checked out: for others DVC would ask whether to replace them.
    """
    from dvc.exceptions import CheckoutError

    if not stage.cmd or (not stage.changed_stage() and stage.deps_cached()):
        if pull:
            _asked(lambda: _pull(repo, stage), repo, warn)
        for out in filter(_absent, stage.outs):
            with contextlib.suppress(CheckoutError):
                out.checkout()
    return not _missing(stage)


def _pull_run(repo: "Repo", stage: "DvcStage") -> None:
    """Pull the run cache's result for the present deps and params of ``stage``; `dvc repro` checks it out."""
    from dvc.stage.cache import _can_hash

    if not _can_hash(stage):  # without deps or outs, for one: the run cache has nothing of its kind
        return
    stage.save_deps()
    if entry := repo.stage_cache._load(stage):
        _pull(repo, repo.stage_cache._create_stage(entry, wdir=stage.wdir))


def _pull(repo: "Repo", stage: "DvcStage") -> None:
    for objects in stage.get_used_objs().values():
        repo.cloud.pull(objects)


def _missing(stage: "DvcStage") -> bool:
    return any(map(_absent, stage.outs))


def _absent(out: "Output") -> bool:
    return bool(out.hash_info) and not out.exists


def _asked(work: Callable[[], None], repo: "Repo", warn: Callable[[str], None]) -> bool:
    """Do ``work`` and return whether the remote answered. A missing object is an answer."""
    from dvc.exceptions import CollectCacheError

    try:
        work()
    except CollectCacheError:
        pass
    except Exception as e:  # every kind of storage has errors of its own
        name = repo.config["core"].get("remote")
        if not name:
            raise
        UNREACHABLE.add(repo.root_dir)
        url = repo.config["remote"].get(name, {}).get("url", "it is not configured")
        warn(redact(f"the DVC remote {name} ({url}) does not answer, so nothing is taken from it: {one_line(e)}"))
        return False
    return True
