"""Where a retrain begins: what is committed, with the new data, in a worktree; and whether there is anything to do."""

import os
from pathlib import Path

from flows import arrivals, git, promotion, workspace
from flows.graph import plan
from flows.workspace import Start
from stages.contract.errors import UserError
from stages.contract.params import load_params


def begin(repository: Path, data: list[str], inbox: str | None) -> Start:
    """The worktree at the newest commit of the branch, with its results and with the new data.

    Finishes a promotion that was interrupted.

    Raises:
        UserError: uncommitted changes; no such data; git, DVC or, after an interruption, the registry refuses.
    """
    branch, remote, base = stand(repository)
    promotion.settle(repository, base)
    tree = workspace.folder(repository) / "tree"
    workspace.checkout(repository, tree, base)
    found = arrivals.arrived(data, _inbox(repository, inbox))
    lines = arrivals.take_in(found, tree, load_params(os.path.relpath(tree / "params.yaml")))
    return Start(repository, branch, remote, base, tree, tuple(lines))


def _inbox(repository: Path, stated: str | None) -> Path | None:
    """The stated folder, or VERDICT_INBOX, or the repository's `inbox` if there is one."""
    if stated := stated or os.environ.get("VERDICT_INBOX"):
        return Path(stated)
    return path if (path := repository / "inbox").is_dir() else None


def stand(repository: Path) -> tuple[str, str | None, str]:
    """The branch, its remote if any, and its newest commit, in either.

    Raises:
        UserError: uncommitted changes that matter, no branch, a remote that does not answer, refuses or has diverged.
    """
    branch = git.branch(repository)
    if files := workspace.uncommitted(repository, git.changed(repository)):
        raise UserError(f"not committed: {', '.join(files)}. Retraining starts from what is: commit or stash first.")
    remote = git.remote(repository, branch)
    newest = git.newest(repository, branch, remote)
    if remote:
        git.push(repository, branch, remote, newest, "--dry-run")  # before a night of training, not after it
    return branch, remote, newest


def nothing_to_do(start: Start) -> bool:
    """Whether there is no new data, every stage is up to date, and a model of this branch has been through the gate."""
    if start.arrivals or not git.git(start.repository, "log", "-1", "--format=%H", "--grep=^Champion: ", start.base):
        return False
    return all(stage.fresh for stage in plan(start.tree))
