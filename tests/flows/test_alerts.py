import json
import os
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from flows import alerts, console
from flows.execution import watching
from flows.planned import Outcome
from stages.contract.tracking import locations
from stages.contract.tracking.spool import open_spool
from tests.flows.conftest import wait_for

SOURCE = alerts.AlertSource("pipeline", "silent-owl", "http://127.0.0.1:4200/runs/flow-run/1")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(watching, "POLL_SECONDS", 0.02)
    for setting in (alerts.SETTING, *alerts.REPLACED, "VERDICT_STALL_MINUTES"):
        monkeypatch.delenv(setting, raising=False)


@pytest.fixture
def mailbox():
    """A mail server for one message: its port, and what it was told, line by line."""
    server = socket.create_server(("127.0.0.1", 0))
    lines = []

    def serve():
        connection = server.accept()[0]
        with connection, connection.makefile("rwb", buffering=0) as stream:
            stream.write(b"220 test\r\n")
            data = False
            for raw in stream:
                lines.append(raw.decode().rstrip("\r\n"))
                data = (data or lines[-1].upper() == "DATA") and lines[-1] != "."
                if lines[-1].upper() == "DATA":
                    stream.write(b"354 go on\r\n")
                elif not data:
                    stream.write(b"250 ok\r\n")

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1], lines
    server.close()


def test_webhook_gets_all_of_it(monkeypatch, listener):
    monkeypatch.setenv("VERDICT_ALERT_URLS", listener.url)
    alerts.send(SOURCE, "stuck", "no line for 60 minutes", "pretrain", ["step 312", "step 313"])
    assert listener.alerts == [
        {
            "flow": "pipeline",
            "run": "silent-owl",
            "url": SOURCE.url,
            "event": "stuck",
            "stage": "pretrain",
            "reason": "no line for 60 minutes",
            "lines": ["step 312", "step 313"],
        }
    ]


def test_mail_reaches_everybody(monkeypatch, mailbox):
    port, lines = mailbox
    people = "to=a@example.org,b@example.org&from=v@x.org&mode=insecure"
    monkeypatch.setenv("VERDICT_ALERT_URLS", f"mailto://127.0.0.1:{port}?{people}")
    alerts.send(SOURCE, "failed", "Failed: dpo, exited with 3", "dpo", ["line 3 is empty"])
    told = [line.upper() for line in lines if line.upper().startswith("RCPT")]
    assert any("A@EXAMPLE.ORG" in line for line in told), lines
    assert "Subject: pipeline silent-owl: failed in dpo" in lines
    assert any("line 3 is empty" in line for line in lines)


def test_every_address_is_asked_though_one_does_not_answer(monkeypatch, listener, capsys):
    monkeypatch.setenv("VERDICT_ALERT_URLS", f"json://127.0.0.1:1/x {listener.url}")
    alerts.send(SOURCE, "failed", "exited with 3")
    assert len(listener.alerts) == 1 and len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "address",
    [
        "json://127.0.0.1:1/token-1234",
        "token-1234-is-no-address",
        "mailto://user:token-1234@127.0.0.1:1/?to=a@example.org&mode=insecure",
        "mailto://[token-1234",
        "slack://token-1234",
    ],
)
def test_undeliverable_alert_is_one_line_without_secret(monkeypatch, capsys, address):
    monkeypatch.setenv("VERDICT_ALERT_URLS", address)
    alerts.send(SOURCE, "failed", "exited with 3")
    err = capsys.readouterr().err
    assert err.startswith("VERDICT_ALERT_URLS: ")
    assert "silent-owl: failed" in err
    assert "token" not in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("name", alerts.REPLACED)
def test_replaced_setting_says_what_it_is_now(monkeypatch, capsys, name):
    monkeypatch.setenv(name, "https://host/token-1234")
    (line,) = alerts.replaced_settings()
    assert line.startswith(f"{name} is no longer read") and "VERDICT_ALERT_URLS" in line and "token" not in line
    monkeypatch.setenv("VERDICT_ALERT_URLS", "json://127.0.0.1/x")
    assert alerts.replaced_settings() == []


def test_alert_holds_no_password(monkeypatch, listener):
    monkeypatch.setenv("VERDICT_ALERT_URLS", listener.url)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "token-1234")
    alerts.send(SOURCE, "failed", "no answer of s3://joe:token-1234@host", "dpo", ["401 for token-1234"])
    assert "s3://host" in listener.alerts[0]["reason"] and "token" not in json.dumps(listener.alerts)


def test_failed_flow_names_stage_reason_and_last_lines(monkeypatch, listener):
    monkeypatch.setenv("VERDICT_ALERT_URLS", listener.url)
    text = console.failure_text({"dpo": Outcome("Failed", "exited with 3", 9.0, ("line 3 is empty",))}, ["eval"])
    (hook,) = alerts.HOOKS["on_failure"]
    run = SimpleNamespace(name="owl", parent_task_run_id=None)
    hook(SimpleNamespace(name="pipeline"), run, SimpleNamespace(name="Failed", message=text))
    (alert,) = listener.alerts
    assert (alert["event"], alert["stage"]) == ("failed", "dpo")
    assert alert["reason"] == "Failed: dpo, exited with 3 (after 9 s)"
    assert "    line 3 is empty" in alert["lines"]
    assert "Not run because of it: eval" in alert["lines"]


@pytest.fixture
def clock(monkeypatch):
    """The time that the watcher sees, in seconds, in a list of one; a stage is stuck after a minute."""
    now = [0.0]
    monkeypatch.setattr(watching, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    monkeypatch.setenv("VERDICT_STALL_MINUTES", "1")
    return now


def test_silence_is_one_alert_until_the_next_line(monkeypatch, listener, tmp_path, clock):
    monkeypatch.setenv("VERDICT_ALERT_URLS", listener.url)
    with watching.watching(SOURCE, "sft", tmp_path, "a", print) as emit:
        for line in ("step 1", "step 2"):
            emit(line)
            for _ in range(3):
                clock[0] += 61
                wait_for(lambda line=line: listener.alerts and listener.alerts[-1]["lines"] == [line])
    assert [(a["event"], a["stage"], a["lines"]) for a in listener.alerts] == [
        ("stuck", "sft", ["step 1"]),
        ("stuck", "sft", ["step 2"]),
    ]


def test_stage_that_prints_is_not_stuck(monkeypatch, listener, tmp_path, clock):
    monkeypatch.setenv("VERDICT_ALERT_URLS", listener.url)
    with watching.watching(SOURCE, "sft", tmp_path, "a", print) as emit:
        for i in range(10):
            clock[0] += 50
            emit(f"step {i}")
            time.sleep(0.05)
    assert listener.alerts == []


def test_skipped_steps_are_a_loss_spike(monkeypatch, listener, tmp_path):
    monkeypatch.setenv("VERDICT_ALERT_URLS", listener.url)
    run = {"stage": "pretrain", "fingerprint": "f" * 64, "pipeline": "a"}
    with watching.watching(SOURCE, "pretrain", tmp_path, "a", print) as emit:
        emit("step 30")
        other = open_spool(locations.spools(locations.home(tmp_path)), run | {"pipeline": "b", "fingerprint": "e" * 64})
        other.log(10, {"skipped_steps": 5.0})  # told by whoever watches that one
        spool = open_spool(locations.spools(locations.home(tmp_path)), run)
        for step, skipped in ((10, 0), (20, 1), (30, 2), (40, 7)):  # the second is not worth a second alert
            spool.log(step, {"loss": 3.0, "skipped_steps": float(skipped)})
            wait_for(lambda step=step: step < 20 or listener.alerts)
    assert [(a["event"], a["stage"]) for a in listener.alerts] == [("loss spike", "pretrain")] * 2
    assert [a["reason"][:26] for a in listener.alerts] == ["1 left out up to step 20: ", "7 left out up to step 40: "]


def test_earlier_run_sends_no_second_alert(monkeypatch, listener, tmp_path):
    monkeypatch.setenv("VERDICT_ALERT_URLS", listener.url)
    folder = locations.spools(locations.home(tmp_path)) / "pretrain-old"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"t": 0, "s": 9, "m": {"skipped_steps": 3.0}}) + "\n")
    os.utime(folder / "metrics.jsonl", (1, 1))
    (folder / "run.json").write_text('{"pipeline": "a"}')
    with watching.watching(SOURCE, "pretrain", tmp_path, "a", print):
        time.sleep(0.1)
    assert listener.alerts == []
