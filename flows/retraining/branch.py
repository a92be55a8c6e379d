"""Begin a retrain: the branch's newest commit and the new data in a worktree; decide whether there is work."""

import os
from collections.abc import Callable
from pathlib import Path

from flows import alerts
from flows.execution.graph import plan
from flows.retraining import arrivals, git, promotion, workspace
from flows.retraining.inbox import arrived
from flows.retraining.workspace import Start
from stages.contract.errors import UserError
from stages.contract.params import load_params


def begin_retrain(
    repository: Path, data: list[str], inbox: str | None, source: alerts.AlertSource, say: Callable[[str], None]
) -> Start:  # fmt: skip
    """Check the branch's newest commit out in the worktree, with its results and the new data.

    Finish an interrupted promotion first. Refused files of the inbox are printed by ``say`` and sent as an alert of
    ``source``.

    Raises:
        UserError: uncommitted changes; no such data; git, DVC or, after an interruption, the registry refuses.
    """
    branch, remote, base = resolve_branch(repository)
    promotion.settle_promotion(repository, base)
    tree = workspace.retrain_folder(repository) / "tree"
    workspace.checkout(repository, tree, base)
    new = arrived(data, _inbox(repository, inbox))
    intake = arrivals.take_in(new, tree, load_params(os.path.relpath(tree / "params.yaml")))
    if intake.refused:
        for line in intake.refused:
            say(f"refused: {line}")
        alerts.send(source, "refused", f"{len(intake.refused)} files of the inbox cannot be used", "", intake.refused)
    return Start(repository, branch, remote, base, tree, intake)


def _inbox(repository: Path, stated: str | None) -> Path | None:
    """Return the stated folder, or VERDICT_INBOX, or the repository's `inbox` if there is one."""
    if stated := stated or os.environ.get("VERDICT_INBOX"):
        return Path(stated)
    return path if (path := repository / "inbox").is_dir() else None


def resolve_branch(repository: Path) -> tuple[str, str | None, str]:
    """Return the branch, its remote if any, and its newest commit, here or at the remote.

    Raises:
        UserError: uncommitted changes that matter, no branch, a remote that does not answer, refuses or has diverged.
    """
    branch = git.branch(repository)
    if files := workspace.uncommitted(repository, git.changed(repository)):
        raise UserError(
            f"not committed: {', '.join(files)}. Retraining starts from the last commit: commit or stash first."
        )
    remote = git.remote(repository, branch)
    newest = git.newest(repository, branch, remote)
    if remote:
        git.push(repository, branch, remote, newest, "--dry-run")  # before a night of training, not after it
    return branch, remote, newest


def nothing_to_do(start: Start) -> bool:
    """Whether there is no new data, every stage is up to date, and this branch has promoted a model before."""
    promoted = git.git(start.repository, "log", "-1", "--format=%H", "--grep=^Champion: ", start.base)
    return bool(promoted) and not start.intake.arrivals and all(stage.fresh for stage in plan(start.tree))
