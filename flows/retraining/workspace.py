"""Give unattended runs a git worktree of their own with the repository's DVC cache, one run at a time.

It is .verdict/retrain/tree, which git ignores, and takes the disk space of the outs once more. It stays from run to
run, so that a run without changes takes seconds.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.execution.waiting import Occupied, until_free
from flows.retraining import git
from flows.retraining.inbox import Intake
from flows.surroundings import environment
from stages.contract.errors import UserError, one_line
from stages.contract.files import Locked, locked
from stages.contract.identity import cache_folder
from stages.contract.tracking import locations

# In addition to the stages' deps. A change of any other file (documentation, tests) changes no result.
ALWAYS = ("dvc.yaml", "dvc.lock", "params.yaml", ".dvc/config", ".dvcignore", ".gitignore", "flows", "stages")


@dataclass(frozen=True)
class Start:
    """The start of a retrain: its commit, its worktree and the new data in it."""

    repository: Path
    branch: str
    remote: str | None  # of git
    base: str  # the commit it starts from
    tree: Path  # the worktree
    intake: Intake = field(default_factory=Intake)  # the new data


class Busy(Exception):
    """Another retrain, rollback or sweep is at work in this repository."""


def retrain_folder(repository: Path) -> Path:
    """Return the folder of the worktrees, the lock and the note of an interrupted promotion."""
    return repository / ".verdict" / "retrain"


@contextlib.contextmanager
def hold_lock(repository: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the repository's lock for retraining; it ends with this process.

    Wait for the running stage of a retrain that was killed; ``say`` prints a line then. The stage is found by its
    record, so call this inside of :func:`recorded_at`.

    Raises:
        Busy: another process holds the lock, or such a stage does not stop.
    """
    with exclusive(retrain_folder(repository) / "lock", "another retrain"):
        try:
            for tree in ("tree", "champion"):
                until_free(retrain_folder(repository) / tree, say)
        except Occupied as e:
            raise Busy(f"a stage of a retrain that was killed has not stopped: {e}") from None
        yield


@contextlib.contextmanager
def exclusive(path: Path, work: str) -> Iterator[None]:
    """Hold the lock file ``path`` for ``work``. Raises Busy if another process holds it."""
    try:
        with locked(path):
            yield
    except Locked as e:
        raise Busy(
            f"{work} is at work here (process {e.holder}); nothing was done, and its end is the time to try again."
        ) from None


@contextlib.contextmanager
def recorded_at(repository: Path) -> Iterator[None]:
    """Let stages in a worktree write to the repository's spools and tracking store."""
    if "VERDICT_HOME" in os.environ:
        yield
        return
    os.environ["VERDICT_HOME"] = str(locations.home(repository))
    try:
        yield
    finally:
        del os.environ["VERDICT_HOME"]


def uncommitted(repository: Path, changed: list[str]) -> list[str]:
    """Return the ``changed`` files that a stage reads or that decide what runs; a worktree would miss the change."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    if not changed:
        return []
    try:
        with Repo(str(repository)) as repo:
            deps = [dep.fs_path for stage in repo.index.stages for dep in stage.deps if dep.protocol == "local"]
    except DvcException:  # a dvc.yaml in the middle of an edit: every file may matter
        return changed
    matters = [*(repository / name for name in ALWAYS), *map(Path, deps)]
    return [
        name
        for name in changed
        if name.endswith(".dvc") or any(Path(repository / name).is_relative_to(path) for path in matters)
    ]


def checkout(repository: Path, tree: Path, commit: str) -> None:
    """Check ``commit`` out as a worktree at ``tree``, with the results of its dvc.lock from DVC's cache or remote.

    A result that is in neither stays missing: its stage will run.
    """
    git.worktree(repository, tree, commit)
    share_dvc(repository, tree)
    restore_outs(tree)


def share_dvc(repository: Path, tree: Path) -> None:
    """Give ``tree`` the cache, the remotes and the credentials of ``repository``.

    They may be in its config.local, which git does not check out, and relative paths have another meaning there.
    """
    from dvc.config import Config, merge
    from dvc.repo import Repo

    with Repo(str(repository)) as repo:
        cache = cache_folder(repo, repository)
    shared: dict[str, Any] = {}
    for level in ("repo", "local"):  # the user's and the machine's levels apply in the worktree anyway
        merge(shared, Config(str(repository / ".dvc")).load_one(level))
    merge(shared, {"cache": {"dir": str(cache)}})
    (tree / ".dvc" / "config.local").touch(mode=0o600)  # before credentials are written to it
    with Config(str(tree / ".dvc")).edit("local") as config:
        config.update(shared)


def restore_outs(tree: Path, targets: list[str] | None = None) -> bool:
    """Check out ``targets`` (all outs and tracked data) of ``tree`` as dvc.lock and .dvc files record them.

    They come from the cache, or else from the remote. Return False if one is in neither.

    Raises:
        UserError: dvc.yaml or dvc.lock cannot be read.
    """
    from dvc.exceptions import CheckoutError, DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(tree)) as repo:
            try:
                repo.checkout(targets, force=True)
            except CheckoutError:
                with contextlib.suppress(Exception):  # no remote; and every kind of storage has its own errors
                    repo.fetch(targets)
                repo.checkout(targets, force=True)
    except CheckoutError:
        return False
    except DvcException as e:
        raise UserError(one_line(e)) from None
    return True


def run_dvc(tree: Path, *arguments: str) -> None:
    """Run ``dvc arguments`` in ``tree``. Raises UserError with its error line if it fails."""
    command = [sys.executable, "-m", "dvc", *arguments]
    ended = subprocess.run(command, cwd=tree, env=environment({}), capture_output=True, text=True, check=False)
    if ended.returncode:
        lines = [line for line in (ended.stderr + ended.stdout).splitlines() if line.startswith("ERROR")]
        error = lines[0].removeprefix("ERROR: ") if lines else f"exited with {ended.returncode}"
        raise UserError(f"dvc {arguments[0]}: {error}")


def push_results(tree: Path) -> bool:
    """Push recorded outs and data, and the run cache, to DVC's default remote; return False if there is none."""
    from dvc.repo import Repo

    with Repo(str(tree)) as repo:
        if not repo.config["core"].get("remote"):
            return False
    run_dvc(tree, "push", "-q", "--run-cache")
    return True
