"""Recording costs a stage nothing: neither a full disk nor a torn file stops it, and what is lost is said once."""

import errno
import json
import os

import pytest

from stages.contract.tracking import delivery, pipelines, shipment, spool
from stages.contract.tracking.locations import run_records, spools
from tests.contract.recorded import RUN


@pytest.fixture
def full_disk(monkeypatch):
    """Switch a full disk on and off, under everything a spool writes."""
    state = {"full": False}
    write, written, opened = os.write, spool.write_json, os.open

    def fail(path, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def write_some(file, data):
        return write(file, data[:5] if state["full"] else data)

    def open_some(path, *arguments, **options):
        full = state["full"] and str(path).endswith("metrics.jsonl")
        return fail(path) if full else opened(path, *arguments, **options)

    monkeypatch.setattr(spool.os, "write", write_some)
    monkeypatch.setattr(spool.os, "open", open_some)
    for module in (spool, pipelines):
        monkeypatch.setattr(module, "write_json", lambda *a: fail(*a) if state["full"] else written(*a))
    return state


def test_a_full_disk_costs_metrics_and_one_line(tmp_path, capfd, full_disk):
    writing = spool.open_spool(tmp_path, RUN)
    writing.log(0, {"loss": 3.0})
    full_disk["full"] = True
    writing.log(1, {"loss": 2.0})
    writing.log(2, {"loss": 1.5})
    full_disk["full"] = False
    writing.log(3, {"loss": 1.0})
    full_disk["full"] = True
    writing.end("FINISHED", {}, {}, None)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: metrics from step 1 on of this stage cannot be recorded for MLflow")
    assert line.endswith("Training goes on.")
    full_disk["full"] = False
    steps = [spool._step(line) for line in (writing.folder / "metrics.jsonl").read_bytes().splitlines()]
    assert [step for step in steps if step is not None] == [0, 3]


def test_a_stage_that_begins_on_a_full_disk_runs(tmp_path, capfd, full_disk):
    full_disk["full"] = True
    writing = spool.open_spool(tmp_path, RUN)
    writing.log(0, {"loss": 3.0})
    writing.end("FINISHED", {}, {}, None)
    assert len(capfd.readouterr().err.splitlines()) == 1
    full_disk["full"] = False
    spool.open_spool(tmp_path, RUN).end("FINISHED", {}, {}, None)
    (folder,) = tmp_path.iterdir()
    assert sorted(file.name for file in folder.iterdir()) == ["end.json", "metrics.jsonl", "run.json"]


def test_a_folder_that_is_no_folder_costs_one_line_each(tmp_path, capfd, monkeypatch):
    """What root, too, cannot write: a file where a folder should be."""
    (tmp_path / ".verdict").write_text("")
    writing = spool.open_spool(tmp_path / ".verdict" / "spool", RUN)
    writing.log(0, {"loss": 3.0})
    writing.end("FINISHED", {}, {}, None)
    pipelines.begin_pipeline("p1", tmp_path)
    pipelines.close_pipeline("p1", {}, tmp_path)
    pipelines.start_shipper(tmp_path)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 + (os.environ.get("VERDICT_TRACKING") != "off") * 2
    assert all(line.startswith("warning: ") and ".verdict" in line for line in lines)


def test_the_end_of_a_pipeline_on_a_full_disk_is_one_line(tmp_path, capfd, full_disk, monkeypatch):
    monkeypatch.setenv("VERDICT_TRACKING", "off")
    full_disk["full"] = True
    pipelines.close_pipeline("p1", {}, tmp_path)
    (line,) = capfd.readouterr().err.splitlines()
    assert "the end of this pipeline cannot be recorded for MLflow: No space left on device" in line


@pytest.mark.parametrize("torn", ["", "{", "[]", "null", '"text"'])
def test_torn_files_are_read_as_none(tmp_path, torn):
    path = tmp_path / ".verdict/runs/f.json"
    path.parent.mkdir(parents=True)
    path.write_text(torn)
    assert spool.read_object(path) == {}
    assert pipelines.stage_seconds(tmp_path) == {}
    first = spool.open_spool(tmp_path, RUN)
    (first.folder / "run.json").write_text(torn)
    (first.folder / "metrics.jsonl").write_text(json.dumps({"t": 1, "s": 4, "m": {}}) + "\n" + torn)
    assert spool.Spool(first.folder).resumed_step == 4
    second = spool.open_spool(tmp_path, RUN)
    assert spool.read_object(second.folder / "run.json")["stage"] == "toy"


def test_numbers_without_end_are_left_out():
    assert spool.flatten({"a": 10**400, "b": float("inf"), "c": {"d": 1}}) == {"c.d": 1}


OTHER_VERSIONS = ["{}", '{"pid": "x", "end": [], "refusals": [1], "url": 3}', '{"at": "x", "metrics": 5}', "[1]"]


@pytest.mark.parametrize("text", OTHER_VERSIONS)
def test_files_of_another_version_are_ignored(tmp_path, text):
    folder = spools(tmp_path) / "toy-0"
    places = [
        tmp_path / ".verdict" / "delivery.json", tmp_path / ".verdict" / "printed.json",
        run_records(tmp_path) / f"{'f' * 64}.json", folder / "run.json", folder / "begin.json",
    ]  # fmt: skip
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    assert delivery.read_delivery(tmp_path) == delivery.Delivery()
    assert delivery.delivery_news(tmp_path, "p1", trouble="MLflow is down.") != []
    assert not shipment.alive(folder)
    (folder / "end.json").write_text('{"status": "FINISHED"}')
    assert pipelines.stage_seconds(tmp_path) == {}
    assert spool.read_as(run_records(tmp_path) / f"{'f' * 64}.json", spool.RunRecord) is None


def test_a_spool_of_another_version_is_not_resumed(tmp_path):
    before = spools(tmp_path) / f"toy-{'f' * 16}-1"
    before.mkdir(parents=True)
    (before / "run.json").write_text('{"stage": "toy"}')
    assert spool.open_spool(spools(tmp_path), RUN | {"fingerprint": "f" * 64}).folder != before
