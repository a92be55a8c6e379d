"""Where things that bear no identity lie. All of it is outside DVC's outs and untracked by git."""

import os
from pathlib import Path


def home(root: Path, cache: Path | None = None) -> Path:
    """The folder that holds .verdict/ and mlflow.db: the repository, also from a temporary workspace of it.

    ``dvc exp run --temp`` and worktrees with a shared cache run elsewhere and may be deleted afterwards
    (relative tracking paths are left behind there), but their cache points home. Where it lies elsewhere,
    VERDICT_HOME does; flows that work in a worktree set it.
    """
    if chosen := os.environ.get("VERDICT_HOME"):
        return Path(chosen)
    cache = cache or root / ".dvc" / "cache"
    inside_repository = cache.name == "cache" and cache.parent.name == ".dvc"
    return cache.parent.parent if inside_repository else root


def spools(home: Path) -> Path:
    return home / ".verdict" / "spool"


def run_records(home: Path) -> Path:
    return home / ".verdict" / "runs"


def tracking_uri(home: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"


def checkpoints(cache: Path) -> Path:
    """Beside DVC's cache, so that unfinished work survives a temporary workspace and is shared like the cache."""
    chosen = os.environ.get("VERDICT_CHECKPOINTS")
    return Path(chosen) if chosen else cache.with_name(cache.name + "-checkpoints")
