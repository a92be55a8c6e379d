"""The real dvc.yaml on a little data: what `dvc repro` promises, kept by all stages together."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.homes import seed

ROOT = Path(__file__).resolve().parents[1]
TAKE = {"pretrain": 400, "validation": 8, "sft": 150, "preferences": 120, "evals": 1224}
BROKEN = [b'{"text": "cut', b"[1, 2]", b'{"id": "no text"}', b'{"text": 7}', b'{"text": ""}', b'{"text": "\xff\xfe"}']


def little(repo: Path) -> None:
    """Data and parameters of a pipeline that takes seconds a stage."""
    from stages.contract.params import Source
    from stages.corpus.reading.records import read_records

    for name, count in TAKE.items():
        records, _ = read_records(Source(path=str(ROOT / "data" / name), files="**/*"))
        step = max(1, len(records) // count)  # a bit of every source, and of both splits
        lines = [json.dumps(record.value).encode() for record in records[::step]]
        if name == "pretrain":
            lines[5:5] = BROKEN
        (repo / "data" / f"{name}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    yaml = YAML()
    params = yaml.load(repo / "params.yaml")
    for name in TAKE:
        params["data"][name]["path"] = f"data/{name}.jsonl"
    params["budget_flops"] = 2.0e10
    params["sizing"]["rungs"] = [{"share": 0.1, "tokens_per_parameter": 2}]
    params["tokenizer"]["vocab_size"] = 512
    params["pack"]["row_tokens"] = 128
    params["sft"]["batch_tokens"] = 1024
    params["eval"].update(limit=4, validation_bytes=20000, ngram_symbols=100000, prompts=2, new_tokens=4)
    yaml.dump(params, repo / "params.yaml")


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A copy of this repository, run once."""
    folder = tmp_path_factory.mktemp("pipeline") / "repo"
    listing = ["git", "ls-files", "-zco", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, names)):
        given = name.startswith(("data/init/", "data/known/", "data/quality/", "data/teacher/"))
        if given or not name.startswith(("data/", "tests/", "benchmarks/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    little(folder)
    done = dvc(folder, "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def environment(**extra) -> dict:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "VERDICT_TRACKING": "off", **extra}


def dvc(folder, *arguments, **extra):
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=folder, env=environment(**extra), capture_output=True, text=True, check=False)


def ran(output: str) -> list[str]:
    return re.findall(r"^Running stage '(\S+)'", output, re.MULTILINE)


def figures(repo, stage):
    return json.loads((repo / "reports" / stage / "metrics.json").read_text())


def test_all_stages_ran_and_say_what_they_did(repo):
    assert "What was made" in (repo / "reports/eval/summary.txt").read_text()
    assert figures(repo, "dedup")["records"]["data.pretrain"]["rejected"]["total"] == len(BROKEN)
    assert figures(repo, "dedup")["documents_in"] == 400
    assert figures(repo, "pack")["train"]["tokens"] > figures(repo, "tokenizer")["train"]["tokens"]
    summary = (repo / "reports/eval/summary.txt").read_text()
    for stage in ("chats", "reference", "eval"):
        for source, records in figures(repo, stage)["records"].items():
            assert records["read"] == sum(records[key]["total"] for key in ("rejected", "dropped")) + records["used"]
            assert f"  {stage}, {source} " in summary
    page = (repo / "reports/index.html").read_text(encoding="utf-8")
    assert "Bits per byte on held-out text" in page and page.count("<svg") >= 8
    assert "No forecast: it needs rungs of 3 budgets" in summary
    assert {path.name for path in (repo / "out/ladder/0.1-2").iterdir()} == {"point.json"}, "no model is kept"
    bits = figures(repo, "eval")["bits_per_byte"]
    assert bits["base"]["overall"] < 8
    for model in ("pretrain", "sft", "dpo"):
        assert (repo / "out" / model / "model.safetensors").exists()
        assert not [f for f in (repo / "out" / model).iterdir() if f.suffix in (".bin", ".pt", ".pkl")]


def test_nothing_tracked_names_the_machine(repo):
    """No path, no host: they would make two machines' identical work look different."""
    words = [str(repo).encode(), str(Path.home()).encode() + b"/", os.uname().nodename.encode()]
    for file in [*(repo / "out").rglob("*"), *(repo / "reports").rglob("*")]:
        if file.is_file():
            content = file.read_bytes()
            assert not [word for word in words if len(word) > 3 and word in content], file


def test_unchanged_nothing_runs_and_metrics_and_plots_show(repo):
    assert ran(dvc(repo, "repro").stdout) == []
    shown = json.loads(dvc(repo, "metrics", "show", "--json").stdout)
    assert len(shown[""]["data"]) == 4
    assert [path for path, entry in shown[""]["data"].items() if not entry["data"]] == [
        "reports/forecast/headline.json"
    ]
    plots = dvc(repo, "plots", "show", "--json")
    assert plots.returncode == 0, plots.stderr
    assert "errors" not in json.loads(plots.stdout) or not json.loads(plots.stdout)["errors"]


def test_two_processes_measure_what_one_measures(repo):
    before = YAML(typ="safe").load(repo / "dvc.lock")["stages"]
    threads = os.environ.get("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    more = {"VERDICT_GPUS": "2", "OMP_NUM_THREADS": threads, "VERDICT_KEEP_CHECKPOINTS": "1"}
    done = dvc(repo, "repro", "--force", "--single-item", "reference", "eval", **more)
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in ("reference", "eval"):
        logs = [log.name for log in repo.glob(f".dvc/cache-checkpoints/{stage}/*/workers/*.log")]
        assert logs == ["rank-1.log"]
    after = YAML(typ="safe").load(repo / "dvc.lock")["stages"]
    assert {name: after[name]["outs"] for name in after} == {name: before[name]["outs"] for name in after}


def test_conversations_are_checked_before_and_train_no_base_model(repo):
    path, before = repo / "data/sft.jsonl", (repo / "data/sft.jsonl").read_bytes()
    path.write_bytes(before + b"[]\n")
    assert ran(dvc(repo, "repro", "pretrain").stdout) == ["check"]
    assert figures(repo, "check")["records"]["data.sft"]["rejected"] == {"not a JSON object": 1, "total": 1}
    path.write_bytes(before)
    assert ran(dvc(repo, "repro", "pretrain").stdout) == []


def test_killed_and_then_cancelled_pretrain_resumes_to_the_same_bytes(repo, tmp_path_factory):
    yaml = YAML()
    before = yaml.load(repo / "dvc.lock")
    # Without its record, and without the run cache, DVC has to make the result again.
    yaml.dump({**before, "stages": {k: v for k, v in before["stages"].items() if k != "pretrain"}}, repo / "dvc.lock")
    shutil.rmtree(repo / ".dvc/cache/runs")
    process = start(repo, "dvc", "repro", "--single-item", "pretrain")
    deadline = time.monotonic() + 120
    while not list((repo / ".dvc/cache-checkpoints/pretrain").glob("*/checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    runs = [json.loads(path.read_text()) for path in (repo / ".verdict/spool").glob("pretrain-*/run.json")]
    os.kill(max(runs, key=lambda run: run["start"])["pid"], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0, output

    seed(repo.parent / "prefect", tmp_path_factory)
    flow = start(repo, "flows.pipeline", "pretrain")
    assert any("pretrain: resuming from step" in line for line in flow.stdout)
    flow.send_signal(signal.SIGTERM)  # as a worker does when the run is cancelled in Prefect's UI
    output, _ = flow.communicate(timeout=60)
    assert flow.returncode == 130, output
    assert "checkpoint" in output

    again = dvc(repo, "repro", "--no-run-cache")
    assert again.returncode == 0, again.stdout + again.stderr
    assert re.search(r"pretrain: resuming from step \d+", again.stdout)
    assert ran(again.stdout) == ["pretrain"], "the same bytes leave everything after it unchanged"
    assert yaml.load(repo / "dvc.lock") == before


def start(repo, *module):
    """A process that writes checkpoints all the time."""
    env = environment(VERDICT_CHECKPOINT_SECONDS="0.1", PREFECT_HOME=str(repo.parent / "prefect"))
    command = [sys.executable, "-m", *module]
    return subprocess.Popen(command, cwd=repo, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_rungs_that_are_added_are_trained_alone(repo):
    """From here on, tests change the repository of the others."""
    yaml = YAML()
    params = yaml.load(repo / "params.yaml")
    params["sizing"]["rungs"] += [{"share": share, "tokens_per_parameter": 2} for share in (0.2, 0.3)]
    yaml.dump(params, repo / "params.yaml")
    assert ran(dvc(repo, "repro", "pretrain").stdout) == ["ladder@rung1", "ladder@rung2", "forecast"]
    assert figures(repo, "forecast")["rungs"] == 3
    assert ran(dvc(repo, "repro", "pretrain").stdout) == []


def test_another_objective_runs_dpo_and_eval_alone(repo):
    change_dpo(repo, beta=0.5, loss="kto", lora_rank=4)
    assert ran(dvc(repo, "repro").stdout) == ["dpo", "eval"]
    forecast = figures(repo, "eval")["forecast"]
    assert forecast["low"] < forecast["loss"] < forecast["high"]
    assert forecast["reached"] == figures(repo, "pretrain")["validation_loss"]
    assert "Forecast of the base model" in (repo / "reports/eval/summary.txt").read_text()


def test_rewarded_answers_are_learned_from_and_plotted(repo):
    change_dpo(repo, loss="grpo", epochs=0.2, answer_tokens=4)
    done = dvc(repo, "repro", "--single-item", "dpo")
    assert ran(done.stdout) == ["dpo"], done.stderr
    assert figures(repo, "dpo").keys() >= {"reward", "kl", "stopped", "train_loss"}
    plots = json.loads(dvc(repo, "plots", "show", "--json").stdout)
    assert not plots.get("errors")


def change_dpo(repo, **values):
    yaml = YAML()
    params = yaml.load(repo / "params.yaml")
    params["dpo"].update(values)
    yaml.dump(params, repo / "params.yaml")
