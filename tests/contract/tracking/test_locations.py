"""Records belong to the clone, wherever its stages run and whoever shares its cache."""

import subprocess

from stages.contract.tracking import locations


def test_a_temporary_workspace_of_dvc_records_in_its_clone(tmp_path, monkeypatch):
    monkeypatch.delenv("VERDICT_HOME", raising=False)
    assert locations.home(tmp_path) == tmp_path
    assert locations.home(tmp_path / ".dvc/tmp/exps/standalone/tmp1") == tmp_path


def test_a_git_worktree_records_in_its_clone(tmp_path, monkeypatch):
    monkeypatch.delenv("VERDICT_HOME", raising=False)
    clone, worktree = tmp_path / "clone", tmp_path / "worktree"
    user = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (
        ["init", "-q", str(clone)],
        ["-C", str(clone), *user, "commit", "-q", "--allow-empty", "-m", "first"],
        ["-C", str(clone), "worktree", "add", "-q", str(worktree)],
    ):
        subprocess.run(["git", *arguments], check=True)
    assert locations.home(worktree) == worktree, "nobody else's repository"
    (clone / ".dvc").mkdir()
    assert locations.home(worktree) == clone
    assert locations.home(clone) == clone


def test_a_flow_in_a_worktree_says_where_home_is(tmp_path, monkeypatch):
    monkeypatch.setenv("VERDICT_HOME", str(tmp_path / "repository"))
    assert locations.home(tmp_path / "worktree") == tmp_path / "repository"
