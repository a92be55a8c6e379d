import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.contract.tracking import tracker

ROOT = Path(__file__).resolve().parents[2]

DVC_YAML = """
stages:
  toy:
    cmd: {python} -m tests.contract.toy
    deps: [input.txt]
    params: [dedup.ngram, seed]
    outs: [out/toy, reports/toy]
"""


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """A git and DVC repository with one stage, the current folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("VERDICT_TRACKING", "off")
    monkeypatch.delenv("VERDICT_PIPELINE", raising=False)
    subprocess.run(["git", "init", "-q"], check=True)
    (tmp_path / ".dvc/tmp").mkdir(parents=True)  # as `dvc init`, which takes a second
    (tmp_path / ".dvc/config").write_text("[core]\n    analytics = false\n")
    (tmp_path / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    Path("dvc.yaml").write_text(DVC_YAML.format(python=sys.executable))
    Path("input.txt").write_text("some words")
    return tmp_path


@pytest.fixture
def dvc():
    """Run dvc with arguments; returns the finished process, output as text."""

    def call(*arguments, **env):
        return subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            capture_output=True, text=True, env=os.environ | env, check=False,
        )  # fmt: skip

    return call


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """An empty sqlite store; making its tables takes MLflow seconds, so it is copied."""
    home = tmp_path_factory.mktemp("mlflow")
    tracker.experiment(tracker.connect(home), home)
    return home / "mlflow.db"


@pytest.fixture
def home(tmp_path, database, monkeypatch):
    """A clone's folder with an MLflow database."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(database, tmp_path / "mlflow.db")
    return tmp_path
