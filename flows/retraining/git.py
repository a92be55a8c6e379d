"""Run git for retraining: worktrees, commits outside of the checkout, a branch that only moves forward."""

import os
import shutil
import subprocess
from pathlib import Path

from stages.contract.errors import UserError

# A git hook that starts this program sets them; they would point every command at the hook's repository.
INHERITED = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")


def git(root: Path, *arguments: str, text: str | None = None) -> str:
    """Return the stripped stdout of ``git arguments`` in ``root``. Raises UserError with git's message in one line."""
    ended = _run(root, *arguments, text=text)
    if ended.returncode:
        message = " ".join((ended.stderr or ended.stdout).split()) or f"exit code {ended.returncode}"
        raise UserError(f"git {arguments[0]}: {message[:500]}")
    return ended.stdout.rstrip("\n")


def succeeds(root: Path, *arguments: str) -> bool:
    """Return whether ``git arguments`` in ``root`` ends with 0."""
    return _run(root, *arguments).returncode == 0


def branch(root: Path) -> str:
    """Return the branch that is checked out in ``root``, the repository's top folder.

    Raises:
        UserError: no repository, not its top folder, no commit, no branch.
    """
    if Path(git(root, "rev-parse", "--show-toplevel")).resolve() != root.resolve():
        raise UserError(f"{root} is not the top folder of its git repository. Run from there.")
    if not succeeds(root, "rev-parse", "-q", "--verify", "HEAD"):
        raise UserError(f"{root} has no commit yet. Commit the pipeline first.")
    name = git(root, "branch", "--show-current")
    if not name:
        raise UserError("no branch is checked out (detached HEAD), so there is none to commit to. git switch BRANCH")
    return name


def changed(root: Path) -> list[str]:
    """Return tracked files that differ from the last commit, staged or not, and an untracked dvc.lock."""
    lines = git(root, "status", "--porcelain=v1", "-z", "--untracked-files=no", "--no-renames").split("\0")
    paths = [line[3:] for line in lines if line]
    lock = git(root, "ls-files", "--others", "--exclude-standard", "--", "dvc.lock")
    return paths + [lock] * bool(lock)


def remote(root: Path, name: str) -> str | None:
    """Return the remote that branch ``name`` follows, or the only one, or None."""
    followed = _run(root, "config", f"branch.{name}.remote").stdout.strip()
    remotes = git(root, "remote").splitlines()
    return followed if followed in remotes else remotes[0] if len(remotes) == 1 else None


def newest(root: Path, name: str, to: str | None) -> str:
    """Return the newest commit of branch ``name``, here or at the remote ``to``.

    Raises UserError if the remote does not answer, or if the two have diverged.
    """
    here = git(root, "rev-parse", f"refs/heads/{name}")
    if to is None or not git(root, "ls-remote", "--heads", to, f"refs/heads/{name}"):
        return here
    git(root, "fetch", "-q", to, f"refs/heads/{name}")
    there = git(root, "rev-parse", "FETCH_HEAD")
    if is_ancestor(root, there, here):
        return here
    if is_ancestor(root, here, there):
        return there
    raise UserError(f"branch {name} and {to}/{name} have diverged. Bring them together first: git pull --rebase")


def is_ancestor(root: Path, older: str, newer: str) -> bool:
    """Return whether commit ``newer`` has ``older`` in its history, or is it."""
    return succeeds(root, "merge-base", "--is-ancestor", older, newer)


def worktree(root: Path, path: Path, commit: str) -> None:
    """Check ``commit`` out as a worktree of ``root`` at ``path``.

    Ignored files of an existing one stay. One that a killed run left incomplete is replaced.
    """
    try:
        # Without its own .git, git would use the repository around it, which is the person's; in a copied repository
        # it would use the original's.
        if not (path / ".git").is_file() or _repository(path) != _repository(root):
            raise UserError("not a worktree of this repository")
        git(path, "checkout", "-q", "--force", "--detach", commit)
        git(path, "clean", "-fdq")
    except UserError:
        remove_worktree(root, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        git(root, "worktree", "add", "--force", "--detach", str(path), commit)


def remove_worktree(root: Path, path: Path) -> None:
    """Remove the worktree of ``root`` at ``path``, if there is one."""
    shutil.rmtree(path, ignore_errors=True)
    git(root, "worktree", "prune")


def stage_results(tree: Path) -> None:
    """Stage DVC's changes in ``tree``: its pointers, and the .gitignore files it writes for new outs."""
    git(tree, "add", "-u")
    git(tree, "add", "--", "dvc.lock")
    if ignored := git(
        tree, "ls-files", "--others", "--exclude-standard", "--", ":(glob)**/.gitignore", ":(exclude).dvc"
    ).splitlines():
        git(tree, "add", "--", *ignored)


def staged(tree: Path) -> bool:
    """Whether something is staged."""
    return not succeeds(tree, "diff", "--cached", "--quiet")


def commit(tree: Path, parent: str, message: str) -> str:
    """Commit the index of the worktree ``tree``, on no branch, and return the commit; :func:`advance` publishes it."""
    known = succeeds(tree, "var", "GIT_COMMITTER_IDENT")  # a service's account often has no name
    identity = [] if known else ["-c", "user.name=retrain", "-c", "user.email=retrain@localhost"]
    return git(tree, *identity, "commit-tree", git(tree, "write-tree"), "-p", parent, "-F", "-", text=message)


def advance(root: Path, name: str, to: str | None, commit: str) -> str:
    """Move branch ``name`` forward to ``commit``, first at the remote ``to``, and return a sentence about it.

    The checkout of the branch in ``root`` follows, if there is one. git refuses to overwrite a change there; that is
    an error only without a remote, since a remote has the commit by then.

    Raises:
        UserError: the branch was moved meanwhile, or the remote does not answer. Nothing has changed then.
    """
    if to:
        push(root, name, to, commit)
    try:
        if git(root, "branch", "--show-current") == name:
            git(root, "merge", "-q", "--ff-only", commit)
        else:
            git(root, "fetch", "-q", ".", f"{commit}:refs/heads/{name}")  # refuses a move that is no fast-forward
    except UserError as e:
        if to is None:
            raise UserError(f"branch {name} could not be moved forward ({e})") from None
        return f"pushed to {to}; the checkout stays behind ({e}): git pull"
    return f"pushed to {to}" if to else f"committed on {name}"


def push(root: Path, name: str, to: str, commit: str, *options: str) -> None:
    """Move branch ``name`` of the remote ``to`` to ``commit``; with --dry-run only ask whether that is allowed.

    Raises UserError if it is refused, or if the remote does not answer.
    """
    try:
        git(root, "push", "-q", *options, to, f"{commit}:refs/heads/{name}")
    except UserError as e:
        raise UserError(
            f"{e}\nWithout the right to push to {to}: clone a fork, or keep promotions here with git remote remove {to}"
        ) from None


def _repository(root: Path) -> Path:
    return Path(git(root, "rev-parse", "--path-format=absolute", "--git-common-dir")).resolve()


def _run(root: Path, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in INHERITED} | {"GIT_TERMINAL_PROMPT": "0"}
    return subprocess.run(
        ["git", *arguments], cwd=root, env=environment, input=text or "", capture_output=True, encoding="utf-8",
        errors="surrogateescape", check=False,
    )  # fmt: skip
