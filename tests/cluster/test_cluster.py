"""Stages whose parts were made by tasks of datatrove's executors: the same bytes, and nothing is made twice."""

import hashlib
import importlib
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from datatrove.executor import LocalPipelineExecutor

from stages.cluster import parts as cluster
from stages.contract.params import load_params
from stages.corpus.dedup import survivors
from stages.corpus.reading.documents import read_documents
from tests.corpus.helpers import jsonl, stage_run

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 0.4  # GiB, the least, for small shards


@pytest.fixture(scope="module")
def texts():
    """Six files, each a shard, with some that are nearly those of the file before."""
    params = load_params(ROOT / "params.yaml")
    rows = [row for row in read_documents(params.data.pretrain).table.to_pylist() if row["source"] != "dict-jargon"]
    files = [rows[k::14] for k in range(6)]
    for k, (before, file) in enumerate(pairwise(files)):
        file += [row | {"id": f"like-{k}-{row['id']}", "text": row["text"] + " The end."} for row in before[:5]]
    return files


def write(root: Path, texts, validation) -> None:
    (root / "data").mkdir(parents=True)
    for k, rows in enumerate(texts):
        jsonl(root / f"data/pretrain-{k}.jsonl", [*rows, b'{"text": 3}'])
    jsonl(root / "data/validation.jsonl", validation)
    jsonl(root / "data/evals.jsonl", [{"task": "t", "query": " ".join(f"word{k}" for k in range(30))}])


def changed_params():
    raw = load_params(ROOT / "params.yaml").model_dump()
    raw["data"]["pretrain"] = {"path": "data", "files": "pretrain*"}
    for name in ("validation", "evals"):
        raw["data"][name] = {"path": f"data/{name}.jsonl", "files": "**/*"}
    raw["dedup"]["memory_gib"] = MEMORY
    raw |= {"tokenizer": {"vocab_size": 512}, "pack": {"row_tokens": 128}}
    return load_params(ROOT / "params.yaml").model_validate(raw)


def digests(root: Path) -> dict[str, str]:
    files = [path for top in ("out", "reports") for path in (root / top).rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def never(*_, **__):
    raise AssertionError("made again")


def test_parts_made_by_tasks_end_in_the_same_bytes(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(survivors, "ROW_GROUP", 2**17)
    params, found = changed_params(), {}
    for name in ("alone", "spread"):
        write(tmp_path / name, texts, texts[0][-3:])
        monkeypatch.chdir(tmp_path / name)
        for stage in ("dedup", "filter", "tokenizer", "pack"):
            run = stage_run(stage, params, Path())
            with monkeypatch.context() as patch:
                if name == "spread" and stage in cluster.STEPS:
                    scratch = run.scratch.absolute()
                    cluster.run_tasks(stage, params, scratch, LocalPipelineExecutor, tasks=3, workers=2)
                    assert len(list(scratch.glob("bands/*/links.npy"))) in (0, params.dedup.bands)
                    for made in ("dedup.shards._make", "dedup.duplicates.link_band", "filtering.parts.judge"):
                        patch.setattr(f"stages.corpus.{made}", never)
                    if stage == "pack":
                        assert len(list(scratch.glob("encoded/*"))) > 3
                        patch.setattr("stages.pack.Progress.step", counted := Counted())
                importlib.import_module(f"stages.{stage}").main(run)
        found[name] = digests(Path())
    assert found["alone"] == found["spread"]
    assert counted.steps[0] > 10 * sum(counted.steps[1:]), "all training documents were there at the start"


class Counted:
    def __init__(self):
        self.steps = []

    def __call__(self, n=1, note=""):
        self.steps.append(n)


DVC_YAML = """
stages:
  dedup:
    cmd: python -m stages.dedup
    deps: [data]
    params: [data.pretrain, dedup]
    outs: [out/dedup, reports/dedup]
"""
# What the two commands of Slurm do that datatrove calls: jobs of an array one after another, on this machine.
SBATCH = """#!/bin/sh
for last; do :; done
for task in $(sed -n 's/^#SBATCH --array=//p' "$last" | sed 's/%.*//' | sed 's/-/ /' | xargs seq); do
    SLURM_ARRAY_TASK_ID=$task SLURM_JOB_ID=1 SLURM_NODELIST=here SLURM_CPUS_PER_TASK=1 SLURM_MEM_PER_CPU=1 \\
        sh "$last" >> slurm.log 2>&1 || exit 1
done
echo Submitted batch job 1
"""


@pytest.fixture
def repo(texts, tmp_path, monkeypatch):
    write(tmp_path / "repo", texts[:3], texts[0][-3:])
    root = tmp_path / "repo"
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    (root / ".dvc" / "tmp").mkdir(parents=True)
    (root / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "params.yaml").write_text(json.dumps(changed_params().model_dump()))
    (root / "bin").mkdir()
    scripts = {"sbatch": SBATCH, "srun": '#!/bin/sh\nshift 3\nexec "$@"\n', "scontrol": "#!/bin/sh\necho here\n"}
    for name, text in scripts.items():
        (root / "bin" / name).write_text(text)
        (root / "bin" / name).chmod(0o755)
    path = os.pathsep.join([str(root / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    for name, value in (("PATH", path), ("PYTHONPATH", str(ROOT)), ("VERDICT_TRACKING", "off")):
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(root)
    return root


def call(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("executor", [["local"], ["slurm", "--option", "partition=cpu", "--option", "time=01:00:00"]])
def test_dvc_goes_on_from_what_the_tasks_made(repo, executor):
    ended = call("stages.cluster", "dedup", "--tasks", "2", "--executor", *executor)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "from here with: dvc repro dedup" in ended.stdout
    [scratch] = (repo / ".dvc" / "cache-checkpoints" / "dedup").iterdir()
    made = {path: path.stat().st_mtime_ns for path in scratch.glob("*/*") if path.parent.name in ("shards", "bands")}
    assert len(list(scratch.glob("bands/*/links.npy"))) == 20 and len(list(scratch.glob("shards/*/shards"))) == 3
    assert made and call("dvc", "repro", "-q", "dedup").returncode == 0
    assert not scratch.exists() and (repo / "out/dedup/documents.parquet").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--option", "partition"], "error: --option partition: it must be KEY=VALUE."),
     (["--option", "colour=red"], "unexpected keyword argument 'colour' (datatrove's LocalPipelineExecutor)"),
     (["--executor", "slurm"], "missing 2 required positional arguments: 'time' and 'partition'"),
     (["--option", "tasks=8"], "error: --option tasks=8: write --tasks N."),
     (["--option", "a=["], "error: --option a=[: the value is not YAML."),
     (["--executor", "ray"], "error: --executor ray: Please install `ray`"),
     (["--tasks", "0"], "error: --tasks is 0; it must be 1 or more.")],
)  # fmt: skip
def test_what_can_not_be_meant_is_said_in_a_line(repo, capsys, arguments, says):
    assert cluster.main(["dedup", *arguments]) == 1
    assert says in capsys.readouterr().err
