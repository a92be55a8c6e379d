"""The filter stage killed between two parts: it goes on with the next one, and only where nothing it reads changed."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages import filter as stage
from stages.contract.params import Source, load_params
from stages.corpus.reading.documents import read_documents
from tests.corpus.helpers import jsonl, stage_run, table

ROOT = Path(__file__).resolve().parents[3]
PARTS = 40
DVC_YAML = """
stages:
  filter:
    cmd: python -m stages.filter
    deps: [data/evals.jsonl, data/validation.jsonl, out/dedup]
    params: [data.evals, data.validation, filter]
    outs: [out/filter, reports/filter]
"""
ALONE = """
from pathlib import Path
from stages import filter
from stages.contract.params import load_params
from tests.corpus.helpers import stage_run

filter.main(stage_run("filter", load_params(), Path()))
"""


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """English, three for a part, some of them too short for the rules."""
    shipped = read_documents(Source(path=str(ROOT / "data/validation"), files="**/*")).table["text"].to_pylist()
    whole = " ".join(shipped).split(" ")
    return [" ".join(whole[100 * k : 100 * k + (20 if k % 7 == 0 else 100)]) for k in range(3 * PARTS)]


@pytest.fixture
def folder(texts, tmp_path, monkeypatch) -> Path:
    """What the stage reads, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("VERDICT_TRACKING", "off")
    (tmp_path / "data").mkdir()
    jsonl(tmp_path / "data/validation.jsonl", [{"text": "A text of its own that stands nowhere else, held out."}])
    jsonl(tmp_path / "data/evals.jsonl", [{"task": "t", "query": "Which question is asked here and nowhere else?"}])
    write_documents(texts)
    write_params()
    return tmp_path


def write_documents(texts: list[str]) -> None:
    Path("out/dedup").mkdir(parents=True, exist_ok=True)
    pq.write_table(table(texts), "out/dedup/documents.parquet", row_group_size=3)


def write_params(**changes) -> None:
    raw = load_params(ROOT / "params.yaml").model_dump()
    raw["data"] |= {name: {"path": f"data/{name}.jsonl", "files": "**/*"} for name in ("validation", "evals")}
    raw["filter"] |= {"repetition": False} | changes
    Path("params.yaml").write_text(json.dumps(raw))


def parts() -> dict[Path, int]:
    """The whole parts on disk, and when each was judged."""
    folders = ("scratch/filter", ".dvc/cache-checkpoints/filter/*")
    found = (path for folder in folders for path in Path().glob(f"{folder}/parts/*") if path.name.isdigit())
    return {path: path.stat().st_mtime_ns for path in found}


def kill_at(count: int, *command: str) -> dict[Path, int]:
    """Runs ``command`` until it has judged so many parts, kills it, and gives those that are new."""
    before = parts()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    while process.poll() is None and len(parts()) < len(before) + count:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it ended by itself"
    now = parts()
    assert before.items() <= now.items(), "a part was judged again"
    return {path: now[path] for path in now.keys() - before.keys()}


def results() -> dict[str, str]:
    paths = [path for top in ("out/filter", "reports/filter") for path in Path(top).rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_killed_anywhere_it_goes_on_with_the_next_part_and_ends_in_the_same_bytes(folder):
    made = kill_at(int(np.random.default_rng().integers(1, PARTS // 2)), "-c", ALONE)
    assert 0 < len(made) < PARTS
    stage.main(stage_run("filter", load_params(), folder))
    assert made.items() <= parts().items() and len(parts()) == PARTS, "a part was judged again"
    resumed = results()
    shutil.rmtree("scratch")
    stage.main(stage_run("filter", load_params(), folder))
    assert len(resumed) > 4 and results() == resumed


def test_parts_of_other_parameters_or_documents_are_not_taken(folder, texts, monkeypatch):
    subprocess.run(["git", "init", "-q"], check=True)
    Path(".dvc/tmp").mkdir(parents=True)
    Path(".dvc/config").write_text("[core]\n    analytics = false\n")
    Path("dvc.yaml").write_text(DVC_YAML)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    changes = [lambda: None, lambda: write_params(max_words=99), lambda: write_documents(texts[::-1])]
    works = []
    for change in changes:
        change()
        works.append({path.parent.parent for path in kill_at(1, "-m", "stages.filter")})
    assert [len(work) for work in works] == [1, 1, 1] and len(set.union(*works)) == 3
