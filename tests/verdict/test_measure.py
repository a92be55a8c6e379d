"""Measurements end to end, at a size whose figures mean nothing; and the pipeline of measurements."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from dvc.exceptions import DvcException
from ruamel.yaml import YAML

from stages.contract.errors import UserError
from stages.corpus.tokens.packed_rows import Rows, save_rows
from verdict.claims import load_claims
from verdict.machine import write_machine
from verdict.measure import able, main, minutes_wanted, start_method, usual_seconds, verdict_on
from verdict.measuring.intervals import exact
from verdict.run import measured

ROOT = Path(__file__).resolve().parents[2]
STAGE = YAML(typ="safe").load(ROOT / "verdict/dvc.yaml")["stages"]["measure"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A folder of packed rows that are easy to learn."""
    folder, rng = tmp_path_factory.mktemp("rows"), np.random.default_rng(0)
    for part, count in (("train", 32), ("validation", 8)):
        tokens = rng.integers(0, 8, (count, 64)).astype(np.uint16)
        ends = np.tile(np.array([0, 20, 64, 64], np.int32), (count, 1))
        save_rows(Rows(tokens, ends, np.full(count, 64, np.int32)), folder / part)
    return folder


def test_rows_are_measured_judged_and_kept(rows, tmp_path, capfd):
    """In processes of their own: one row fails, the others are measured, and again nothing is."""
    names = ["bf16", "bf16_speed", "fp8", "lion_quality", "lottery_ticket", "packing"]
    arguments = [*names, "--tiny", "--to", str(tmp_path), "--rows", str(rows)]
    assert main(arguments) == 1
    results = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert results.keys() == {*names} - {"fp8"}
    assert "fp8" in capfd.readouterr().out
    for name, result in results.items():
        assert result["low"] <= result["value"] <= result["high"], name
        assert result["verdict"] in ("confirmed", "partly", "refuted", "undecided")
    assert results["bf16"]["details"]["peak_bytes"][1] < results["bf16"]["details"]["peak_bytes"][0]
    lion = results["lion_quality"]["details"]
    assert len(lion["losses"][0]) == results["lion_quality"]["samples"] == 2
    assert [len(losses) for losses in lion["searches"]] == [3, 3]
    assert lion["curves"][0][-1][0] == lion["steps"][0] and len(lion["steps_saved"]) == 3
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    main(arguments)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")} == before


def test_a_row_is_not_begun_without_its_usual_time(tmp_path, capfd):
    arguments = ["bf16", "adamw", "--tiny", "--to", str(tmp_path), "--minutes"]
    assert main([*arguments, "0.01"]) == 0
    assert capfd.readouterr().out == "2 rows are left: the minutes are used. Run it again: bf16, adamw\n"
    assert [*tmp_path.iterdir()] == []
    claims = load_claims()
    assert usual_seconds(claims["adamw"]) > usual_seconds(claims["bf16"])


@pytest.mark.parametrize(("left", "said"), [(600, "bf16: no output\n"), (-1, "")])
def test_a_row_that_the_minutes_stop_is_no_error(left, said, monkeypatch, capsys):
    class Pipeline:
        def reproduce(self, target, single_item):
            raise DvcException("no output")

    monkeypatch.setenv("VERDICT_MINUTES", "30")  # set back after the test
    assert not measured(Pipeline(), "bf16", time.monotonic() + left)
    assert capsys.readouterr().err == said
    assert minutes_wanted() == pytest.approx(max(left, 1) / 60, abs=0.5)


def test_no_process_is_forked_where_there_is_a_gpu():
    assert [start_method(level) for level in (0, 1, 2)] == ["fork", "spawn", "spawn"]


def test_a_best_rate_at_the_edge_decides_nothing():
    rule = load_claims()["muon"].rule
    assert verdict_on(rule, exact(1.5, edges=[])) == "confirmed"
    assert verdict_on(rule, exact(1.5, edges=[0.27])) == "undecided"


def test_an_unknown_technique_is_one_line(capsys):
    assert main(["moun"]) == 1
    assert capsys.readouterr().err == "moun: no such technique in verdict/claims.yaml.\n"


def test_a_cpu_measures_no_row_that_needs_a_gpu():
    claims = load_claims()
    names = able(claims, 0)
    assert {claims[name].hardware for name in names} == {"cpu"}
    assert [claims[name].importance for name in names] == sorted(claims[name].importance for name in names)


def test_every_measured_row_is_a_stage():
    assert STAGE["matrix"]["technique"] == [name for name, row in load_claims().items() if row.measurement]


def test_the_pipeline_does_not_see_the_measurements():
    """verdict/ is a DVC repository of its own; the root's has its own stages and no more."""
    command = [sys.executable, "-m", "dvc", "stage", "list", "--all", "--name-only"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert {name.partition("@")[0] for name in done.stdout.split()} == {
        *YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    }


@pytest.mark.parametrize("value", ["soon", "0", "-3", "nan"])
def test_minutes_must_be_a_number(value, monkeypatch):
    monkeypatch.setenv("VERDICT_MINUTES", value)
    with pytest.raises(UserError, match="must be a number of minutes"):
        minutes_wanted()


def test_an_untouched_machine_keeps_its_file(tmp_path):
    """DVC's identity of every measurement: written again, it would only cost a hash; changed, all rows."""
    path = tmp_path / "hardware.json"
    write_machine(path)
    before = path.read_text(), path.stat().st_mtime_ns
    write_machine(path)
    assert (path.read_text(), path.stat().st_mtime_ns) == before
    assert {"gpu", "cpu", "cores", "packages", "code"} <= json.loads(before[0]).keys()
