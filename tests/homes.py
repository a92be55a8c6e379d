"""Folders of Prefect's servers, with a database that another server has made: to make one takes it 11 s of CPU."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path


def _kept(factory) -> Path:
    folder = factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "prefect.db"  # of all workers


def seed(home: Path, factory) -> Path:
    """Give ``home``, which has no database, the one that is kept, if there is one."""
    if _kept(factory).exists() and not (home / "prefect.db").exists():
        home.mkdir(parents=True, exist_ok=True)
        shutil.copy(_kept(factory), home / "prefect.db")
    return home


def keep(home: Path, factory) -> None:
    """Keep the database of ``home``, whose server has just started, for `seed`."""
    if not _kept(factory).exists():
        aside = home / "kept.db"
        with closing(sqlite3.connect(home / "prefect.db")) as ours, closing(sqlite3.connect(aside)) as copy:
            ours.backup(copy)
        aside.rename(_kept(factory))
