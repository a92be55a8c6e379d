"""Where unattended runs work: a git worktree of their own with the repository's DVC cache, one run at a time.

What they need (disk: the outs once more; .verdict/ is ignored by git): everything in .verdict/retrain, where `tree`
stays from run to run, so that a run in which nothing changed is over in seconds.
"""

import contextlib
import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flows import git
from flows.graph import one_line
from flows.stage import environment
from stages.contract import places
from stages.contract.errors import UserError
from stages.contract.identity import cache_folder
from stages.contract.starter import started

# Beside what the stages depend on; a change of anything else (documents, tests) cannot change a result.
ALWAYS = ("dvc.yaml", "dvc.lock", "params.yaml", ".dvc/config", ".dvcignore", ".gitignore", "flows", "stages")


@dataclass(frozen=True)
class Start:
    """Where a run begins."""

    repository: Path
    branch: str
    remote: str | None  # of git
    base: str  # the commit it starts from
    tree: Path  # the worktree
    arrivals: tuple[str, ...]  # a line for each new file


class Busy(Exception):
    """Another retrain or rollback is at work in this repository."""


def folder(repository: Path) -> Path:
    """Where the worktrees, the lock and what an interrupted promotion left lie."""
    return repository / ".verdict" / "retrain"


@contextlib.contextmanager
def alone(repository: Path) -> Iterator[None]:
    """Hold the repository's lock for retraining; it dies with this process.

    Raises:
        Busy: another process holds it, or a stage of one that was killed has not stopped yet.
    """
    path = folder(repository) / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise Busy(
                f"another retrain is at work here (process {lock.read().strip() or 'unknown'}); "
                "nothing was done, and its end is the time to try again."
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        if pid := at_work(folder(repository) / "tree"):
            raise Busy(f"a stage of a retrain that was killed is still stopping (process {pid}); try in a minute.")
        yield


@contextlib.contextmanager
def recorded_at(repository: Path) -> Iterator[None]:
    """Stages in a worktree spool and track where the repository's do."""
    if "VERDICT_HOME" in os.environ:
        yield
        return
    os.environ["VERDICT_HOME"] = str(places.home(repository))
    try:
        yield
    finally:
        del os.environ["VERDICT_HOME"]


def uncommitted(repository: Path, changed: list[str]) -> list[str]:
    """Those of the ``changed`` files that a stage reads or that say what runs; a worktree would miss the change."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    if not changed:
        return []
    try:
        with Repo(str(repository)) as repo:
            deps = [dep.fs_path for stage in repo.index.stages for dep in stage.deps if dep.protocol == "local"]
    except DvcException:  # a dvc.yaml in the middle of an edit: everything matters
        return changed
    matters = [*(repository / name for name in ALWAYS), *map(Path, deps)]
    return [
        name
        for name in changed
        if name.endswith(".dvc") or any(Path(repository / name).is_relative_to(path) for path in matters)
    ]


def checkout(repository: Path, tree: Path, commit: str) -> None:
    """A worktree at ``tree`` with what ``commit`` and its dvc.lock say, the results from DVC's cache or remote.

    A result that is in neither is left out: its stage will run.
    """
    git.worktree(repository, tree, commit)
    share_dvc(repository, tree)
    restore(tree)


def at_work(tree: Path) -> int | None:
    """The id of a DVC process that reads or writes in ``tree``, as DVC's own rwlock says, if one lives."""
    path = tree / ".dvc" / "tmp" / "rwlock"
    noted = re.findall(r'"pid": (\d+)', path.read_text(encoding="utf-8")) if path.exists() else []
    return next((int(pid) for pid in noted if started(int(pid))), None)


def share_dvc(repository: Path, tree: Path) -> None:
    """Give ``tree`` the cache, the remotes and the credentials of ``repository``.

    They may stand in its config.local, which git does not bring along, and relative paths mean other places there.
    """
    from dvc.config import Config, merge
    from dvc.repo import Repo

    with Repo(str(repository)) as repo:
        cache = cache_folder(repo, repository)
    shared: dict = {}
    for level in ("repo", "local"):  # a person's and a machine's own hold in the worktree too
        merge(shared, Config(str(repository / ".dvc")).load_one(level))
    merge(shared, {"cache": {"dir": str(cache)}})
    (tree / ".dvc" / "config.local").touch(mode=0o600)  # before credentials are written to it
    with Config(str(tree / ".dvc")).edit("local") as config:
        config.update(shared)


def restore(tree: Path, targets: list[str] | None = None) -> bool:
    """Bring ``targets`` (all outs and tracked data) of ``tree`` to what dvc.lock and .dvc files record.

    From the cache, and what is not there from the remote. False if something is in neither.

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
                if not repo.config["core"].get("remote"):
                    return False
                with contextlib.suppress(Exception):  # every kind of storage has errors of its own
                    repo.fetch(targets)
                try:
                    repo.checkout(targets, force=True)
                except CheckoutError:
                    return False
    except DvcException as e:
        raise UserError(one_line(e)) from None
    return True


def run_dvc(tree: Path, *arguments: str) -> None:
    """``dvc arguments`` in ``tree``. Raises UserError with its last line if it fails."""
    command = [sys.executable, "-m", "dvc", *arguments]
    ended = subprocess.run(command, cwd=tree, env=environment({}), capture_output=True, text=True, check=False)
    if ended.returncode:
        lines = [line for line in (ended.stderr + ended.stdout).splitlines() if line.startswith("ERROR")]
        said = lines[0].removeprefix("ERROR: ") if lines else f"exited with {ended.returncode}"
        raise UserError(f"dvc {arguments[0]}: {said}")


def push(tree: Path) -> bool:
    """Send what dvc.lock and .dvc files name, and the run cache, to DVC's default remote; False if there is none."""
    from dvc.repo import Repo

    with Repo(str(tree)) as repo:
        if not repo.config["core"].get("remote"):
            return False
    run_dvc(tree, "push", "-q", "--run-cache")
    return True
