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

from flows.retraining import registry
from stages.contract.files import locked
from stages.contract.tracking import delivery, pipelines, shipment, shipper, spool, tracker
from stages.contract.tracking.locations import run_records, shipper_lock, spools, tracking_uri
from stages.contract.tracking.names import Names
from tests.contract.recorded import RUN, finished, only_run, ship_all


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
    (model,) = client.search_logged_models([tracker.experiment(client, home)])
    assert model.tags["dvc.md5"] == "a" * 32 + ".dir"
    assert not list(spools(home).iterdir())
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.data.tags["verdict.pipeline"] == "p1"


def test_a_model_has_its_stages_and_its_evaluations_figures(home, tmp_path):
    reports, md5 = tmp_path / "reports", "a" * 32 + ".dir"
    reports.mkdir()
    (reports / "models.json").write_text('{"out/toy": {"bits_per_byte": 2.5}, "out/gone": {"bits_per_byte": 9}}')
    (home / "out/toy").mkdir(parents=True)
    (home / "out/toy/config.json").write_text("{}")
    finished(home, outs={"out/toy": md5})
    ship_all(home)
    finished(home, RUN | {"stage": "eval", "fingerprint": "e" * 64, "datasets": {"out/toy": md5}}, reports)
    client = ship_all(home)
    (model,) = client.search_logged_models([tracker.experiment(client, home)])
    assert {metric.key: metric.value for metric in model.metrics} == {"documents": 7.0, "bits_per_byte": 2.5}
    registry.register_version(client, f"dvc://out/toy?md5={md5}", {"model_md5": md5})
    (version,) = client.search_model_versions(f"name = '{registry.name()}'")
    assert version.run_id == model.source_run_id


def test_the_experiment_opens_in_mlflows_training_view(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "older")
    client = shipper.connect(home)
    number = client.create_experiment("older")  # without a kind
    assert tracker.experiment(client, home) == number
    assert client.get_experiment(number).tags["mlflow.experimentKind"] == "custom_model_development"


def test_sending_the_same_lines_twice_adds_no_points(home):
    writing = finished(home)
    client = shipper.connect(home)
    run_id = shipment._create_stage_run(client, json.loads((writing.folder / "run.json").read_text()), home)
    for _ in range(2):
        shipment._ship_metrics(client, run_id, writing.folder, 0, Names({}))
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
    monkeypatch.setattr(pipelines, "locked_fingerprints", lambda root: {"toy": RUN["fingerprint"]})
    (home / "params.yaml").write_text("seed: 0\n")
    for record_kept in (True, False):  # also on a machine that has no record, by the run's tag
        if not record_kept:
            shutil.rmtree(run_records(home))
        pipelines.close_pipeline(f"p2-{record_kept}", {"toy": "Cached"}, home)
        ship_all(home)
        (parent,) = client.search_runs(
            [tracker.experiment(client, home)], f"tags.`verdict.pipeline` = 'p2-{record_kept}'"
        )
        description = parent.data.tags["mlflow.note.content"]
        assert f"| toy | Cached | [run](#/experiments/1/runs/{only_run(client, home).info.run_id}?work" in description
        assert {tag for tag in parent.data.tags if not tag.startswith("mlflow.")} == {"verdict.pipeline"}
        assert parent.info.status == "FINISHED"


def test_how_long_a_stage_took_the_last_time_is_known_before_and_after_it_is_sent(home):
    assert pipelines.stage_seconds(home) == {}
    finished(home, seconds=50.0)
    assert pipelines.stage_seconds(home) == {"toy": 50.0}
    ship_all(home)
    assert pipelines.stage_seconds(home) == {"toy": 50.0}
    time.sleep(0.01)
    finished(home, RUN | {"fingerprint": "e" * 64}, seconds=40.0)
    failed = spool.open_spool(spools(home), RUN | {"fingerprint": "d" * 64})
    failed.end("FAILED", {}, {}, None)
    spool.open_spool(spools(home), RUN | {"fingerprint": "c" * 64})
    assert pipelines.stage_seconds(home) == {"toy": 40.0}
    ship_all(home)
    assert pipelines.stage_seconds(home) == {"toy": 40.0}


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
        pipelines.start_shipper(tmp_path)
        assert time.monotonic() - started < 5
        assert len(list(spools(tmp_path).iterdir())) == 1


def test_no_second_shipper_is_started_beside_one_at_work(tmp_path, monkeypatch):
    monkeypatch.delenv("VERDICT_TRACKING", raising=False)
    started = []
    monkeypatch.setattr(pipelines, "_begin_shipper", lambda home, out: started.append(home))
    with locked(shipper_lock(tmp_path)):
        pipelines.start_shipper(tmp_path)
    assert started == []
    pipelines.start_shipper(tmp_path)
    assert started == [tmp_path]


def test_the_shipper_process_serves_everything_and_exits(home):
    finished(home)
    finished(home, RUN | {"stage": "second", "fingerprint": "e" * 64})
    command = [sys.executable, "-m", "stages.contract.tracking.shipper", str(home)]
    both = [subprocess.Popen(command, cwd=Path(__file__).parents[3], env=os.environ) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert not list(spools(home).iterdir())
    assert only_run(shipper.connect(home), home, "second").info.status == "FINISHED"
    assert tracking_uri(home).endswith("mlflow.db")


def test_a_damaged_spool_does_not_hold_up_the_others(home, monkeypatch):
    first = finished(home)
    finished(home, RUN | {"stage": "zweite", "fingerprint": "e" * 64})
    (first.folder / "run.json").write_text('{"stage": "toy"}')
    monkeypatch.setattr(shipper, "IDLE_SECONDS", 0.0)
    shipper._serve(home)
    assert not list(spools(home).iterdir())
    assert [folder.name for folder in (home / ".verdict/rejected-spools").iterdir()] == [first.folder.name]
    assert only_run(shipper.connect(home), home, "zweite").info.status == "FINISHED"
    (line,) = delivery.delivery_news(home, "p1")
    assert line.startswith("A spool cannot be read (KeyError")


def test_two_logs_of_one_step_are_both_kept(home):
    writing = spool.open_spool(spools(home), RUN)
    writing.log(5, {"loss": 2.0})
    writing.log(5, {"eval_loss": 2.5})
    writing.end("FINISHED", {}, {}, None)
    assert only_run(ship_all(home), home).data.metrics == {"loss": 2.0, "eval_loss": 2.5}


def test_processes_that_meet_at_a_new_database_make_it_once(tmp_path):
    code = (
        "import sys, pathlib; from stages.contract.tracking.shipper import connect; connect(pathlib.Path(sys.argv[1]))"
    )
    clients = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE) for _ in range(2)]
    ended = [(client.communicate()[1], client.returncode) for client in clients]
    assert [code for _, code in ended] == [0, 0], ended
    assert shipper.connect(tmp_path).search_experiments()
