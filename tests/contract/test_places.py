from stages.contract import places


def test_home_is_the_repository_also_from_a_workspace_that_shares_its_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("VERDICT_HOME", raising=False)
    repository, workspace = tmp_path / "repository", tmp_path / "workspace"
    assert places.home(repository) == repository
    assert places.home(workspace, repository / ".dvc" / "cache") == repository
    assert places.home(workspace, tmp_path / "shared-cache") == workspace


def test_a_flow_in_a_worktree_says_where_home_is(tmp_path, monkeypatch):
    monkeypatch.setenv("VERDICT_HOME", str(tmp_path / "repository"))
    assert places.home(tmp_path / "worktree") == tmp_path / "repository"
    assert places.home(tmp_path / "worktree", tmp_path / "shared-cache") == tmp_path / "repository"
