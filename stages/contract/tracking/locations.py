"""Name the folders of files without identity: outside DVC's outs, and ignored by git."""

import os
import re
from pathlib import Path

from stages.contract.secrets import redact


def home(root: Path) -> Path:
    """Return the folder that holds .verdict/ and mlflow.db: the clone that ``root`` belongs to.

    A workspace of ``dvc exp run --temp`` or of DVC's queue, and a git worktree, may be deleted after the run, so what
    they record belongs to the clone that made them. DVC's cache does not say which that is: clones may share one.
    Flows that work in a worktree set VERDICT_HOME.
    """
    if chosen := os.environ.get("VERDICT_HOME"):
        return Path(chosen)
    return _made_by_dvc(root) or _main_worktree(root) or root


def _made_by_dvc(root: Path) -> Path | None:
    """Return the clone in whose .dvc/tmp/exps ``root`` lies, where DVC makes its temporary workspaces."""
    for folder in root.parents:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return home(folder.parents[2])
    return None


def _main_worktree(root: Path) -> Path | None:
    """Return the clone of which ``root`` is a linked worktree (gitrepository-layout(5): commondir)."""
    try:
        _, _, folder = (root / ".git").read_text(encoding="utf-8").strip().partition("gitdir: ")
        shared = (root / folder / "commondir").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):  # the clone itself, a submodule, or no git
        return None
    clone = (root / folder / shared).resolve().parent
    return clone if (clone / ".dvc").is_dir() else None


def spools(home: Path) -> Path:
    """Return the folder of metrics that wait for MLflow."""
    return home / ".verdict" / "spool"


def shipper_lock(home: Path) -> Path:
    """Return the file that the shipper at work has locked."""
    return home / ".verdict" / "shipper.lock"


def run_records(home: Path) -> Path:
    """Return the folder of the ids that MLflow gave to runs."""
    return home / ".verdict" / "runs"


def tracking_uri(home: Path) -> str:
    """Return the address of the tracker, which may hold a password: redact it before it is written or shown."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"


def tracking_server(home: Path) -> str:
    """Return the address of MLflow's pages without password.

    That is the tracker's, or that of this clone's last `make serve`, or else where `mlflow ui` listens.
    """
    if (uri := redact(tracking_uri(home))).startswith("http"):
        return uri.rstrip("/")
    settings = home / ".verdict" / "serve.env"
    match = re.search(r"MLFLOW_TRACKING_URI=(\S+)", settings.read_text()) if settings.is_file() else None
    return match[1] if match else "http://127.0.0.1:5000"


def checkpoints(cache: Path) -> Path:
    """Return the folder of checkpoints, beside DVC's ``cache``.

    A temporary workspace and clones that share the cache thus share unfinished work, too.
    """
    chosen = os.environ.get("VERDICT_CHECKPOINTS")
    return Path(chosen) if chosen else cache.with_name(cache.name + "-checkpoints")


def keep_checkpoints() -> bool:
    """Whether VERDICT_KEEP_CHECKPOINTS keeps every checkpoint, for their evaluation; it bears no identity."""
    return os.environ.get("VERDICT_KEEP_CHECKPOINTS", "") not in ("", "0")
