"""Let MLflow's database follow a project that was renamed, moved or copied.

MLflow writes the absolute folder of an experiment's and a run's artifacts into its database, once. After a move it
would make the old folder again, and a copy would write into the other project's.
"""

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Tables with addresses of artifacts: key, column with the address.
TABLES = {
    "experiments": ("experiment_id", "artifact_location"),
    "runs": ("run_uuid", "artifact_uri"),
    "logged_models": ("model_id", "artifact_location"),
}


def follow(home: Path) -> None:
    """Point ``home``'s mlflow.db to its own mlruns, where a former place or another clone's stands in it.

    Artifacts that exist only at the old place stay there.
    """
    database = home / "mlflow.db"
    if not database.is_file() or not database.stat().st_size:
        return
    with contextlib.suppress(sqlite3.Error):  # damaged, locked or of another version: MLflow says it better
        connection = sqlite3.connect(database, timeout=5)
        with contextlib.closing(connection), connection:
            for table, (key, column) in TABLES.items():
                _follow(connection, table, key, column, home)


def _follow(connection: sqlite3.Connection, table: str, key: str, column: str, home: Path) -> None:
    for name, address in connection.execute(f"SELECT {key}, {column} FROM {table}").fetchall():
        if present := _present(address or "", home, table == "experiments"):
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (present, name))


def _present(address: str, home: Path, whole: bool) -> str | None:
    """Return the address inside ``home``, None where ``address`` is right. ``whole``: of an experiment, not a run."""
    path = Path(unquote(urlsplit(address).path)) if address.startswith(("file:", "/")) else Path()
    if "mlruns" not in path.parts:
        return None
    at = len(path.parts) - 1 - path.parts[::-1].index("mlruns")
    former, inside = Path(*path.parts[:at]), Path(*path.parts[at:])
    if former.resolve() == home.resolve() or (
        former.exists() and not (former / ".dvc").exists()
    ):  # here, or a person's own choice
        return None
    if not whole and path.exists() and not (home / inside).exists():
        return None
    return (home / inside).as_uri()
