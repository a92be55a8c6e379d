"""What MLflow refuses costs nothing else, and is said in one line that names the remedy."""

import http.server
import shutil
import sqlite3
import threading

import pytest

from stages.contract.tracking import delivery, pipelines, shipper, spool, tracker
from stages.contract.tracking.locations import spools
from tests.contract.recorded import RUN, finished, only_run, ship_all


@pytest.fixture
def serve(monkeypatch):
    """Start an HTTP server that answers everything with ``status`` and ``body``; return its address."""
    servers = []

    def start(status, body, kind="application/json"):
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            do_POST = do_GET

            def log_message(self, *_):
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://joe:pL4nt-ed@127.0.0.1:{servers[-1].server_port}"

    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    yield start
    for server in servers:
        server.shutdown()


def serve_spools(home, monkeypatch):
    """Run the shipper's loop until it gives up; return what a terminal reads afterwards."""
    monkeypatch.setattr(shipper, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(shipper, "GIVE_UP_SECONDS", 0.0)
    monkeypatch.setattr(shipper.time, "sleep", lambda _: None)
    shipper._serve(home)
    return delivery.delivery_news(home, "p1")


def test_names_and_values_that_mlflow_refuses_lose_nothing_else(home, monkeypatch):
    sources = ["https://example.org/docs", "a/", "C++", "C#+", "x" * 260, "Wiki", "wiki", "", ".."]
    run = RUN | {
        "params": {f"data.{source}//p": "v" * 9000 for source in sources} | {f"p{i}": "v" for i in range(150)},
        "datasets": {source or "d": "d" * 40 for source in sources},
        "tags": {f"{source}/t": "v\0" * 9000 for source in sources},
    }
    writing = spool.open_spool(spools(home), run)
    for step in range(700):
        writing.log(step, {"loss": 1.0, "huge": 1e300, "nan": float("nan"), "whole": 10**400})
    metrics = {f"share.{source}": 1.0 + i for i, source in enumerate(sources)} | {"right": True}
    writing.end("FINISHED", metrics, {f"out/{source}": "a" * 32 for source in sources}, None)
    assert serve_spools(home, monkeypatch) == []
    client = tracker.connect(home)
    found = only_run(client, home)
    assert found.info.status == "FINISHED"
    assert sorted(v for k, v in found.data.metrics.items() if "share" in k) == [1.0 + i for i in range(len(sources))]
    assert found.data.metrics["right"] == 1.0
    assert len(client.get_metric_history(found.info.run_id, "loss")) == 700
    assert len(found.data.params) == len(sources) + 150
    assert len(found.inputs.dataset_inputs) == len(sources)
    assert not list(spools(home).iterdir())


def test_one_refused_value_is_named_once_and_the_batch_arrives(home, monkeypatch):
    monkeypatch.setattr(tracker, "allowed_name", lambda name: name)
    run = RUN | {"params": {"good": "1", "bad//name": "2"}}
    writing = spool.open_spool(spools(home), run)
    writing.end("FINISHED", {"documents": 7.0}, {}, None)
    (line,) = serve_spools(home, monkeypatch)
    assert line.startswith("MLflow refuses 1 value of toy, all others arrived: param bad//name: ")
    assert delivery.delivery_news(home, "p2") == []
    found = only_run(tracker.connect(home), home)
    assert found.data.params == {"good": "1"}
    assert found.data.metrics == {"documents": 7.0}


def test_an_experiment_in_the_bin_is_said_once_a_pipeline(home, monkeypatch, capsys):
    client = tracker.connect(home)
    number = tracker.experiment(client, home)
    client.delete_experiment(number)
    finished(home)
    (line,) = serve_spools(home, monkeypatch)
    assert "experiment 'verdict' is deleted" in line
    assert f"mlflow experiments restore --experiment-id {number}" in line
    assert line.endswith("1 run waits in .verdict/spool and will be sent by a later stage.")
    assert line.startswith(tracker.glance(home))
    assert delivery.delivery_news(home, "p1") == []
    assert delivery.delivery_news(home, "p2") == [line]
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert "Traceback" not in out + err
    client.restore_experiment(number)
    assert serve_spools(home, monkeypatch) == []
    assert only_run(client, home).info.status == "FINISHED"


def test_a_deleted_run_or_database_is_recorded_again(home):
    writing = spool.open_spool(spools(home), RUN)
    writing.log(0, {"loss": 3.0})
    client = ship_all(home)
    client.delete_run(only_run(client, home).info.run_id)
    writing.log(1, {"loss": 2.0})
    client = ship_all(home)
    assert len(client.get_metric_history(only_run(client, home).info.run_id, "loss")) == 2
    record = writing.folder / "shipped.json"
    spool.write_json(record, spool.read_object(record) | {"run_id": "0" * 32})
    writing.log(2, {"loss": 1.0})
    ship_all(home)
    histories = [
        len(client.get_metric_history(run.info.run_id, "loss"))
        for run in client.search_runs([tracker.experiment(client, home)], "attributes.run_name = 'toy'")
    ]
    assert sorted(histories) == [2, 3]


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, "You are not authenticated.", "refuses the password of joe (401). Correct MLFLOW_TRACKING_USERNAME"),
        (403, "Permission denied", "gives no permission to joe (403)"),
        (403, "Invalid Host header - possible DNS rebinding attack detected", "--allowed-hosts"),
        (404, "<html>nginx</html>", "No MLflow server answers at"),
        (200, "<html>a login page</html>", "No MLflow server answers at"),
        (502, "Bad Gateway", "MLflow at http://127.0.0.1"),
    ],
)
def test_what_a_server_says_is_one_line_with_the_remedy(tmp_path, monkeypatch, capsys, serve, status, body, says):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", serve(status, body))
    finished(tmp_path)
    (line,) = serve_spools(tmp_path, monkeypatch)
    assert says in line
    assert "1 run waits" in line
    everything = line + "".join(capsys.readouterr())
    everything += "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "pL4nt-ed" not in everything
    assert "Traceback" not in everything


def test_a_missing_login_and_a_wrong_token_are_named(tmp_path, monkeypatch, serve):
    address = serve(401, "You are not authenticated.").replace("joe:pL4nt-ed@", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    finished(tmp_path)
    assert "asks for a login (401). Set MLFLOW_TRACKING_USERNAME" in serve_spools(tmp_path, monkeypatch)[0]
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "pL4nt-ed")
    assert "refuses the token (401). Correct MLFLOW_TRACKING_TOKEN" in serve_spools(tmp_path, monkeypatch)[0]


def change(home, statement):
    with sqlite3.connect(home / "mlflow.db") as connection:
        connection.executescript(statement)


READ_ONLY = """
    CREATE TRIGGER refuse BEFORE INSERT ON runs
    BEGIN SELECT RAISE(ABORT, 'attempt to write a readonly database'); END
"""
DATABASES = {
    "another version of MLflow": lambda home: change(home, "UPDATE alembic_version SET version_num = 'ffffffffffff'"),
    "is damaged": lambda home: (home / "mlflow.db").write_bytes(b"no database" * 500),
    "cannot be written": lambda home: change(home, READ_ONLY),
}


@pytest.mark.parametrize("says", DATABASES)
def test_a_database_that_cannot_be_used_is_one_line(home, monkeypatch, capsys, says):
    DATABASES[says](home)
    finished(home)
    (line,) = serve_spools(home, monkeypatch)
    assert says in line
    assert "1 run waits" in line
    assert says != "is damaged" or line.startswith(tracker.glance(home))
    assert "Traceback" not in "".join(capsys.readouterr())


def test_a_folder_as_tracking_uri_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    finished(tmp_path)
    (line,) = serve_spools(tmp_path, monkeypatch)
    assert line.startswith("MLFLOW_TRACKING_URI is ./mlruns, which MLflow does not take.")


def test_artifacts_follow_a_moved_and_a_copied_project(home, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VERDICT_TRACKING", "off")
    (home / "reports").mkdir()
    (home / "reports" / "loss.csv").write_text("first\n")
    (home / ".dvc").mkdir()
    moved = tmp_path_factory.mktemp("moved") / "two"
    change(home, f"UPDATE experiments SET artifact_location = 'file://{home}/mlruns' WHERE name = 'verdict'")
    finished(home, reports=home / "reports")
    first = only_run(ship_all(home), home).info.run_id
    shutil.copytree(home, moved)
    for again in ("copied", "moved"):
        if again == "moved":
            shutil.rmtree(home)
        finished(moved, RUN | {"stage": again, "fingerprint": again[0] * 64}, reports=moved / "reports")
        client = ship_all(moved)
        for run in (first, only_run(client, moved, again).info.run_id):
            assert client.get_run(run).info.artifact_uri == f"file://{moved}/mlruns/{run}/artifacts"
            assert [file.path for file in client.list_artifacts(run)] == ["loss.csv"]
    assert not home.exists()


def test_a_chosen_artifact_folder_stays(home, tmp_path):
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    change(home, f"UPDATE experiments SET artifact_location = 'file://{chosen}/mlruns' WHERE name = 'verdict'")
    client = tracker.connect(home)
    assert client.get_experiment_by_name("verdict").artifact_location == f"file://{chosen}/mlruns"


def test_a_killed_flow_leaves_no_run_open(home, monkeypatch):
    monkeypatch.setenv("VERDICT_TRACKING", "off")
    pipelines.begin_pipeline("p1", home)
    finished(home)
    client = ship_all(home)
    experiment = tracker.experiment(client, home)
    (parent,) = client.search_runs([experiment], "tags.`verdict.pipeline` = 'p1'")
    assert parent.info.status == "RUNNING", "its flow, this process, lives"
    (folder,) = spools(home).glob("pipeline-*")
    record = spool.read_object(folder / "begin.json")
    spool.write_json(folder / "begin.json", record | {"pid_started": "1"})
    ship_all(home)
    assert client.get_run(parent.info.run_id).info.status == "KILLED"
    assert not list(spools(home).iterdir())


def test_a_bare_repro_ends_as_its_stages_and_has_the_experiments_name(home, tmp_path):
    run = RUN | {"pipeline": "dvc-1-2", "experiment": "lush-moa"}
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/headline.json").write_text('{"bits_per_byte": 2.5}')
    (tmp_path / "reports/summary.md").write_text("## Bits per byte")
    finished(home, run, reports=tmp_path / "reports")
    failed = spool.open_spool(spools(home), run | {"stage": "next", "fingerprint": "e" * 64})
    failed.end("FAILED", {}, {}, None)
    client = ship_all(home)
    parent = only_run(client, home, "lush-moa")
    assert parent.info.status == "FAILED"
    assert parent.data.metrics == {"bits_per_byte": 2.5}
    assert parent.data.tags["mlflow.note.content"] == "## Bits per byte"
    assert only_run(client, home).data.tags["dvc.experiment"] == "lush-moa"


def test_a_key_with_quotes_and_slashes_is_closed(home, monkeypatch):
    monkeypatch.setenv("VERDICT_TRACKING", "off")
    key = "sweep-a-data.sft={\"web/*\": '1'}" + "x" * 300
    finished(home, RUN | {"pipeline": key})
    pipelines.close_pipeline(key, {}, home)
    client = ship_all(home)
    assert client.get_run(only_run(client, home).data.tags["mlflow.parentRunId"]).info.status == "FINISHED"
