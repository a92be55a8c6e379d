import json
import os
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from flows import alerts, console
from flows.stage import Outcome
from stages.contract import places
from stages.contract.spool import open_spool
from tests.flows.conftest import wait_for

SOURCE = alerts.Source("pipeline", "silent-owl", "http://127.0.0.1:4200/runs/flow-run/1")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(alerts, "POLL_SECONDS", 0.02)
    for setting in ("VERDICT_ALERT_WEBHOOK", "VERDICT_ALERT_SMTP", "VERDICT_STALL_MINUTES"):
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
    monkeypatch.setenv("VERDICT_ALERT_WEBHOOK", listener.url)
    alerts.send(SOURCE, "stuck", "no line for 60 minutes", "pretrain", ["step 312", "step 313"])
    (alert,) = listener.alerts
    text = alert.pop("text")
    assert alert == {
        "flow": "pipeline",
        "run": "silent-owl",
        "url": SOURCE.url,
        "event": "stuck",
        "stage": "pretrain",
        "reason": "no line for 60 minutes",
        "lines": ["step 312", "step 313"],
    }
    assert text.startswith(
        "pipeline silent-owl: stuck in pretrain\nno line for 60 minutes\nstep 312\nstep 313\n\n" + SOURCE.url
    )


def test_mail_reaches_everybody(monkeypatch, mailbox):
    port, lines = mailbox
    monkeypatch.setenv("VERDICT_ALERT_SMTP", f"smtp://127.0.0.1:{port}/?to=a@example.org,b@example.org&from=v@x.org")
    alerts.send(SOURCE, "failed", "Failed: dpo, exited with 3", "dpo", ["line 3 is empty"])
    assert [line for line in lines if line.startswith("rcpt")] == ["rcpt TO:<a@example.org>", "rcpt TO:<b@example.org>"]
    assert "Subject: pipeline silent-owl: failed in dpo" in lines
    assert {"Failed: dpo, exited with 3", "line 3 is empty"} <= {*lines}


@pytest.mark.parametrize(
    ("setting", "address"),
    [
        ("VERDICT_ALERT_WEBHOOK", "http://127.0.0.1:1/token-1234"),
        ("VERDICT_ALERT_WEBHOOK", "not an address, token-1234"),
        ("VERDICT_ALERT_SMTP", "smtp://user:token-1234@127.0.0.1:1/?to=a@example.org"),
        ("VERDICT_ALERT_SMTP", "smtp://127.0.0.1:1/token-1234"),
        ("VERDICT_ALERT_SMTP", "smtp://[token-1234"),
    ],
)
def test_what_cannot_be_delivered_is_one_line_and_keeps_its_secret(monkeypatch, capsys, setting, address):
    monkeypatch.setenv(setting, address)
    alerts.send(SOURCE, "failed", "exited with 3")
    err = capsys.readouterr().err
    assert err.startswith(f"{setting}: ")
    assert "silent-owl: failed" in err
    assert "token" not in err
    assert len(err.splitlines()) == 1


def test_failed_flow_names_stage_reason_and_last_lines(monkeypatch, listener):
    monkeypatch.setenv("VERDICT_ALERT_WEBHOOK", listener.url)
    text = console.failure_text({"dpo": Outcome("Failed", "exited with 3", 9.0, ("line 3 is empty",))}, ["eval"])
    (hook,) = alerts.HOOKS["on_failure"]
    run = SimpleNamespace(name="owl", parent_task_run_id=None)
    hook(SimpleNamespace(name="pipeline"), run, SimpleNamespace(name="Failed", message=text))
    (alert,) = listener.alerts
    assert (alert["event"], alert["stage"]) == ("failed", "dpo")
    assert alert["reason"] == "Failed: dpo, exited with 3 (after 9 s)"
    assert "    line 3 is empty" in alert["lines"]
    assert "Not run because of it: eval" in alert["lines"]


def test_silence_is_told_once_until_the_stage_speaks_again(monkeypatch, listener, tmp_path):
    monkeypatch.setenv("VERDICT_ALERT_WEBHOOK", listener.url)
    monkeypatch.setenv("VERDICT_STALL_MINUTES", str(0.2 / 60))
    with alerts.watching(SOURCE, "sft", tmp_path, "a") as hear:
        for line in ("step 1", "step 2"):
            hear(line)
            wait_for(lambda line=line: listener.alerts and listener.alerts[-1]["lines"] == [line])
            time.sleep(0.4)
    assert [(a["event"], a["stage"], a["lines"]) for a in listener.alerts] == [
        ("stuck", "sft", ["step 1"]),
        ("stuck", "sft", ["step 2"]),
    ]


def test_a_stage_that_speaks_is_not_stuck(monkeypatch, listener, tmp_path):
    monkeypatch.setenv("VERDICT_ALERT_WEBHOOK", listener.url)
    monkeypatch.setenv("VERDICT_STALL_MINUTES", str(1 / 60))
    with alerts.watching(SOURCE, "sft", tmp_path, "a") as hear:
        for i in range(25):
            hear(f"step {i}")
            time.sleep(0.05)
    assert listener.alerts == []


def test_skipped_steps_are_a_loss_spike(monkeypatch, listener, tmp_path):
    monkeypatch.setenv("VERDICT_ALERT_WEBHOOK", listener.url)
    run = {"stage": "pretrain", "fingerprint": "f" * 64, "pipeline": "a"}
    with alerts.watching(SOURCE, "pretrain", tmp_path, "a") as hear:
        hear("step 30")
        other = open_spool(places.spools(places.home(tmp_path)), run | {"pipeline": "b", "fingerprint": "e" * 64})
        other.log(10, {"skipped_steps": 5.0})  # told by whoever watches that one
        spool = open_spool(places.spools(places.home(tmp_path)), run)
        for step, skipped in ((10, 0), (20, 1), (30, 2), (40, 7)):  # the second is not worth a second alert
            spool.log(step, {"loss": 3.0, "skipped_steps": float(skipped)})
            time.sleep(0.1)
    assert [(a["event"], a["stage"]) for a in listener.alerts] == [("loss spike", "pretrain")] * 2
    assert [a["reason"][:26] for a in listener.alerts] == ["1 left out up to step 20: ", "7 left out up to step 40: "]


def test_a_run_before_this_one_is_not_told_again(monkeypatch, listener, tmp_path):
    monkeypatch.setenv("VERDICT_ALERT_WEBHOOK", listener.url)
    folder = places.spools(places.home(tmp_path)) / "pretrain-old"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"t": 0, "s": 9, "m": {"skipped_steps": 3.0}}) + "\n")
    os.utime(folder / "metrics.jsonl", (1, 1))
    (folder / "run.json").write_text('{"pipeline": "a"}')
    with alerts.watching(SOURCE, "pretrain", tmp_path, "a"):
        time.sleep(0.1)
    assert listener.alerts == []
