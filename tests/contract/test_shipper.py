"""Spools arrive in MLflow as runs, whatever the tracking server does meanwhile."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.contract import shipper, spool, tracking
from stages.contract.places import run_records, spools, tracking_uri

RUN = {
    "stage": "toy", "fingerprint": "f" * 64, "pipeline": "p1", "params": {"seed": "0"},
    "datasets": {"input.txt": "d" * 32}, "tags": {"git.revision": "abc"},
}  # fmt: skip


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An empty sqlite store; making its tables takes MLflow seconds, so it is copied."""
    home = tmp_path_factory.mktemp("mlflow")
    shipper._experiment(shipper.connect(home), home)
    return home / "mlflow.db"


@pytest.fixture
def home(tmp_path, database, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(database, tmp_path / "mlflow.db")
    return tmp_path


def ship_all(home):
    client = shipper.connect(home)
    for folder in sorted(spools(home).glob("*")):
        shipper.ship(client, folder, home)
    return client


def finished(home, run=RUN, reports=None, outs=None, seconds=None):
    writing = spool.open_spool(spools(home), run)
    for step in range(3):
        writing.log(step, {"loss": 3.0 - step, "bad": float("nan")})
    took = {} if seconds is None else {"stage_seconds": seconds}
    writing.end("FINISHED", {"documents": 7.0} | took, outs or {}, reports)
    return writing


def only_run(client, home, name="toy"):
    (run,) = client.search_runs([shipper._experiment(client, home)], f"attributes.run_name = '{name}'")
    return run


def test_a_finished_stage_becomes_one_run_with_all_that_was_recorded(home, tmp_path):
    reports = tmp_path / "reports"
    reports.mkdir()
    (reports / "loss.csv").write_text("step,loss\n")
    (home / "out/toy").mkdir(parents=True)
    (home / "out/toy/config.json").write_text("{}")
    finished(home, reports=reports, outs={"out/toy": "a" * 32 + ".dir"})
    client = ship_all(home)
    run = only_run(client, home)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "0"}
    assert run.data.metrics == {"loss": 1.0, "documents": 7.0}
    assert [m.value for m in client.get_metric_history(run.info.run_id, "loss")] == [3.0, 2.0, 1.0]
    assert run.data.tags["dvc.fingerprint"] == RUN["fingerprint"]
    assert run.data.tags["dvc.out.out/toy"] == "a" * 32 + ".dir"
    assert [d.dataset.digest for d in run.inputs.dataset_inputs] == ["d" * 32]
    assert {a.path for a in client.list_artifacts(run.info.run_id)} == {"loss.csv", "out-toy.dvc.json"}
    (model,) = client.search_logged_models([shipper._experiment(client, home)])
    assert model.tags["dvc.md5"] == "a" * 32 + ".dir"
    assert not list(spools(home).iterdir())
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.data.tags["verdict.pipeline"] == "p1"


def test_sending_the_same_lines_twice_adds_no_points(home):
    writing = finished(home)
    client = shipper.connect(home)
    run_id = shipper._create_stage_run(client, json.loads((writing.folder / "run.json").read_text()), home)
    for _ in range(2):
        shipper._ship_metrics(client, run_id, writing.folder, 0)
    assert len(client.get_metric_history(run_id, "loss")) == 3


def test_a_killed_stage_is_marked_and_goes_on_in_the_same_run(home):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    writing = spool.open_spool(spools(home), RUN)
    writing.log(0, {"loss": 3.0})
    record = writing.folder / "run.json"
    spool.write_json(record, json.loads(record.read_text()) | {"pid": process.pid, "pid_started": "1"})
    client = ship_all(home)
    assert only_run(client, home).info.status == "KILLED"
    resumed = spool.open_spool(spools(home), RUN)
    resumed.log(0, {"loss": 3.0})
    resumed.log(1, {"loss": 2.0})
    ship_all(home)
    assert only_run(client, home).info.status == "RUNNING"
    resumed.end("FINISHED", {}, {}, None)
    ship_all(home)
    run = only_run(client, home)
    assert run.info.status == "FINISHED"
    assert [m.value for m in client.get_metric_history(run.info.run_id, "loss")] == [3.0, 2.0]


def test_a_pipeline_links_cached_stages_to_the_runs_that_made_them(home, monkeypatch):
    monkeypatch.setenv("VERDICT_TRACKING", "off")
    finished(home)
    client = ship_all(home)
    monkeypatch.setattr(tracking, "locked_fingerprints", lambda root: {"toy": RUN["fingerprint"]})
    (home / "params.yaml").write_text("seed: 0\n")
    for record_kept in (True, False):  # also on a machine that has no record, by the run's tag
        if not record_kept:
            shutil.rmtree(run_records(home))
        tracking.close_pipeline(f"p2-{record_kept}", {"toy": "Cached"}, home)
        ship_all(home)
        (parent,) = client.search_runs(
            [shipper._experiment(client, home)], f"tags.`verdict.pipeline` = 'p2-{record_kept}'"
        )
        assert parent.data.tags["stage.toy.run_id"] == only_run(client, home).info.run_id
        assert parent.data.tags["stage.toy.state"] == "Cached"
        assert parent.info.status == "FINISHED"


def test_how_long_a_stage_took_the_last_time_is_known_before_and_after_it_is_sent(home):
    assert tracking.stage_seconds(home) == {}
    finished(home, seconds=50.0)
    assert tracking.stage_seconds(home) == {"toy": 50.0}
    ship_all(home)
    assert tracking.stage_seconds(home) == {"toy": 50.0}
    time.sleep(0.01)
    finished(home, RUN | {"fingerprint": "e" * 64}, seconds=40.0)
    failed = spool.open_spool(spools(home), RUN | {"fingerprint": "d" * 64})
    failed.end("FAILED", {}, {}, None)
    spool.open_spool(spools(home), RUN | {"fingerprint": "c" * 64})
    assert tracking.stage_seconds(home) == {"toy": 40.0}
    ship_all(home)
    assert tracking.stage_seconds(home) == {"toy": 40.0}


def test_without_a_server_spools_wait_and_arrive_later(home, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    finished(home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with pytest.raises(Exception):  # noqa: B017 - whatever mlflow raises
        ship_all(home)
    assert len(list(spools(home).iterdir())) == 1
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert only_run(ship_all(home), home).info.status == "FINISHED"


def test_recording_never_waits_for_the_tracker(tmp_path, monkeypatch):
    """A server that accepts and never answers: a bare MLflow call blocks, the spool does not."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        started = time.monotonic()
        finished(tmp_path)
        tracking.start_shipper(tmp_path)
        assert time.monotonic() - started < 5
        assert len(list(spools(tmp_path).iterdir())) == 1


def test_the_shipper_process_serves_everything_and_exits(home):
    finished(home)
    finished(home, RUN | {"stage": "second", "fingerprint": "e" * 64})
    command = [sys.executable, "-m", "stages.contract.shipper", str(home)]
    both = [subprocess.Popen(command, cwd=Path(__file__).parents[2], env=os.environ) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert not list(spools(home).iterdir())
    assert only_run(shipper.connect(home), home, "second").info.status == "FINISHED"
    assert tracking_uri(home).endswith("mlflow.db")


def test_a_spool_that_mlflow_refuses_does_not_hold_up_the_others(home, monkeypatch):
    first = finished(home)
    finished(home, RUN | {"stage": "zweite", "fingerprint": "e" * 64})
    (first.folder / "metrics.jsonl").write_text("no json\n")
    monkeypatch.setattr(shipper, "GIVE_UP_SECONDS", 0.0)
    shipper._serve(home)
    assert [folder.name for folder in spools(home).iterdir()] == [first.folder.name]
    assert only_run(shipper.connect(home), home, "zweite").info.status == "FINISHED"


def test_any_source_name_becomes_a_metric_name(home):
    writing = spool.open_spool(spools(home), RUN)
    writing.log(0, {"share.C++": 0.5})
    writing.end("FINISHED", {"share.arXiv (cs), a": 0.25}, {}, None)
    run = only_run(ship_all(home), home)
    assert run.data.metrics == {"share.C__": 0.5, "share.arXiv _cs__ a": 0.25}


def test_two_logs_of_one_step_are_both_kept(home):
    writing = spool.open_spool(spools(home), RUN)
    writing.log(5, {"loss": 2.0})
    writing.log(5, {"eval_loss": 2.5})
    writing.end("FINISHED", {}, {}, None)
    assert only_run(ship_all(home), home).data.metrics == {"loss": 2.0, "eval_loss": 2.5}


def test_processes_that_meet_at_a_new_database_make_it_once(tmp_path):
    code = "import sys, pathlib; from stages.contract.shipper import connect; connect(pathlib.Path(sys.argv[1]))"
    clients = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE) for _ in range(2)]
    ended = [(client.communicate()[1], client.returncode) for client in clients]
    assert [code for _, code in ended] == [0, 0], ended
    assert shipper.connect(tmp_path).search_experiments()
