"""Undo the last promotion.

The alias `champion` goes back to the version before, and a new commit reverts that of the promotion.
"""

from pathlib import Path

from flows.retraining import git, promotion, registry, workspace
from flows.retraining.branch import resolve_branch
from stages.contract.errors import UserError
from stages.contract.tracking import locations


def rollback(repository: Path) -> str:
    """Undo the promotion of the present champion and return a sentence about it.

    Raises:
        Busy: a retrain is at work.
        UserError: there is no version before, or the commit cannot be reverted without touching later ones.
    """
    with workspace.recorded_at(repository), workspace.hold_lock(repository, print):
        branch, remote, base = resolve_branch(repository)
        if settled := promotion.settle_promotion(repository, base):
            return f"Finished an interrupted change of champion: version {settled} is champion. Run again to undo it."
        with registry.registry_client(locations.home(repository)) as client:
            champion = registry.by_alias(client, registry.CHAMPION)
        if champion is None:
            raise UserError(f"no version of {registry.name()} is champion; there is nothing to undo.")
        previous, promoted = champion.tags.get("previous", "none"), registry.tag(champion, "commit")
        if previous == "none":
            raise UserError(f"version {champion.number} is the first champion; there is none before it.")
        start = workspace.Start(repository, branch, remote, base, workspace.retrain_folder(repository) / "tree")
        commit = _revert(start, promoted, champion.number, previous)
        moved = promotion.move(start, commit, previous, {champion.number: {"rolled_back": commit}})
    return (
        f"Version {previous} is champion again, in place of version {champion.number}. Commit {promoted[:10]} is "
        f"reverted by {commit[:10]}, {moved}. Its results: dvc checkout"
    )


def _revert(start: workspace.Start, promoted: str, version: str, previous: str) -> str:
    """Commit the revert of ``promoted``, on no branch yet."""
    if not git.is_ancestor(start.repository, promoted, start.base):
        raise UserError(f"the promotion of version {version}, {promoted[:10]}, is not on branch {start.branch}.")
    git.worktree(start.repository, start.tree, start.base)
    try:
        git.git(start.tree, "revert", "--no-commit", promoted)
    except UserError as e:
        conflicts = git.git(start.tree, "diff", "--name-only", "--diff-filter=U").splitlines()
        git.git(start.tree, "revert", "--abort")
        raise UserError(
            f"commit {promoted[:10]} cannot be reverted, later commits changed the same: "
            f"{', '.join(conflicts) or e}. Revert these first. Version {version} stays champion."
        ) from None
    what = f"This reverts commit {promoted}, the promotion of version {version}."
    message = f"Roll back to version {previous}\n\n{what}\n\nChampion: {previous}\n"
    return git.commit(start.tree, start.base, message)
