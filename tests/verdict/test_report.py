"""The report has all rows, with a figure or a reason, for one machine and for two."""

import io
import json
import re

import pytest

from stages.contract.errors import UserError
from verdict import adopt
from verdict.adopt import adopted, choices
from verdict.claims import PARAMS, load_claims
from verdict.drawing import Point, pareto
from verdict.figures import advise, conditions, shown
from verdict.report import load_results, write_report

MACHINE = {
    "gpu": "", "gpu_gib": 0, "gpus": 0, "cuda": "", "cpu": "A <processor>", "cores": 2, "python": "3.12",
    "packages": {"torch": "2.11.0"},
}  # fmt: skip
RUNGS = [
    {"name": "naive", "tokens_per_second": 100.0, "peak_bytes": 4e9},
    {"name": "BF16", "tokens_per_second": 300.0, "peak_bytes": 2e9},
]
TRAINED = {"losses": [[3.0, 3.1], [2.9, 3.0]], "seconds_per_step": [0.1, 0.2], "steps": [100, 50],
           "batch": [2, 512], "parameters": 1328256}  # fmt: skip


def result(technique, metric, value, low, high, verdict="confirmed", **details):
    figures = {"technique": technique, "metric": metric, "value": value, "low": low, "high": high, "p": None}
    return figures | {"samples": 5, "verdict": verdict, "machine": MACHINE, "seconds": 1.0, "details": details}


RESULTS = [
    result("headline_speed", "speed", 3.0, 2.9, 3.1, rungs=RUNGS),
    result("bf16", "memory", -0.45, -0.45, -0.45, peak_bytes=[4e9, 2.2e9]),
    result("muon", "steps", 1.2, 1.1, 1.3, **TRAINED),
    result("compile", "speed", 0.8, 0.7, 0.9, "refuted"),
    {"technique": "fp8", "error": "it took more than 60 seconds", "seconds": 60.0},
]

NATS = result("lion_quality", "loss_at_equal_tokens", -0.1, -0.12, -0.08)


@pytest.fixture
def folder(tmp_path):
    for one in RESULTS:
        (tmp_path / f"{one['technique']}.json").write_text(json.dumps(one))
    return tmp_path


@pytest.mark.parametrize("machines", [1, 2])
def test_report_has_every_row_and_no_empty_one(folder, tmp_path, machines):
    page, text = (path.read_text() for path in write_report([folder] * machines, tmp_path / "report"))
    assert re.findall(r'<tr id="(\w+)"', page) == re.findall(r"^\| [^|]*\(`(\w+)`\) \|", text, re.M)
    assert {*re.findall(r'<tr id="(\w+)"', page)} == load_claims().keys()
    lines = [line for line in text.splitlines() if line.startswith("| ") and "`) |" in line]
    assert {line.count(" | ") for line in lines} == {2 + 3 * machines}
    assert [line for line in lines if "|  |" in line] == []
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    assert "<script" not in page and "A &lt;processor&gt;" in page
    assert page.count("<svg") == 3 * machines
    for said in ("it took more than 60 seconds", conditions(RESULTS[2])):
        assert said in page and said in text


def test_a_folder_without_results_is_one_line(tmp_path):
    with pytest.raises(UserError, match="has no results"):
        write_report([tmp_path], tmp_path / "report")


def test_a_damaged_result_is_one_line(folder):
    (folder / "lion.json").write_text("{")
    with pytest.raises(UserError, match=r"lion\.json is no result"):
        load_results(folder)


def test_figures_have_unit_and_interval():
    assert shown(RESULTS[0]) == "3x [2.9, 3.1], n 5"
    assert shown(RESULTS[1]) == "-45.0 %, n 5"
    assert shown(RESULTS[2] | {"p": 1e-5}) == "1.2x [1.1, 1.3], n 5, p < 0.001"
    assert shown(NATS) == "-0.1000 nats [-0.1200, -0.0800], n 5"


def test_trainings_have_their_size_and_what_limits_them():
    assert conditions(RESULTS[2]) == "trainings of 1.3M parameters on 0.1M and 0.051M tokens"
    edge = result("lion_quality", "loss_at_equal_tokens", 0, 0, 0, **TRAINED, edges=[0.03], steps_saved=[0.9, 0.8, 1.0])
    assert conditions(edge).endswith(
        "; 0.9x [0.8, 1] fewer steps to the same loss; undecided, as the best rate, 0.03, is at the edge of those tried"
    )
    assert advise(load_claims()["lion_quality"], edge) == "-"
    assert conditions(RESULTS[0]) == ""


def test_advice_follows_the_interval():
    claims = load_claims()
    assert [advise(claims[one["technique"]], one) for one in RESULTS[1:4]] == ["keep", "keep", "drop"]


def test_pareto_line_has_what_nothing_beats():
    points = [Point("slow", 3, 1), Point("worse", 2, 5), Point("fast", 1, 4)]
    assert [point.label for point in pareto(points)] == ["fast", "slow"]


def test_adopt_writes_better_switches_with_figures(folder):
    text = "a: 1\ntrainer:\n  optimizer: adamw # muon\n  compile: auto # b\npretrain:\n  clip: 1.0 # c\n"
    chosen = choices(load_claims(), load_results(folder))
    assert {key: value for key, (value, _) in chosen.items()} == {
        "trainer.optimizer": "muon", "trainer.precision": "bf16"
    }  # fmt: skip
    after = adopted(text, {"trainer.optimizer": chosen["trainer.optimizer"]})
    line = "  optimizer: muon # muon # verdict: muon: 1.2x [1.1, 1.3], n 5"
    assert after == text.replace("  optimizer: adamw # muon", line)
    assert adopted(after, {"trainer.optimizer": ("lion", "x")}).count("# verdict:") == 1


def test_adopt_changes_the_key_of_its_section():
    text = "trainer: {optimizer: adamw, compile: auto} # one line\npretrain:\n  optimizer: sgd\n"
    after = "trainer: {optimizer: muon, compile: auto} # one line # verdict: x\npretrain:\n  optimizer: sgd\n"
    assert adopted(text, {"trainer.optimizer": ("muon", "x")}) == after


def test_adopt_takes_no_switch_that_is_worse_elsewhere(folder):
    slower = result("muon_time", "loss_at_equal_time", 0.1, 0.05, 0.2, "refuted", **TRAINED)
    (folder / "muon_time.json").write_text(json.dumps(slower))
    assert "trainer.optimizer" not in choices(load_claims(), load_results(folder))


def test_a_share_has_no_sign_and_a_change_has_one():
    figure = {"value": 0.126, "low": 0.11, "high": 0.14}
    assert shown(figure | {"metric": "time_share"}) == "12.6 % [11.0, 14.0]"
    assert shown(figure | {"metric": "memory"}) == "+12.6 % [+11.0, +14.0]"


def test_adopt_writes_nothing_where_nobody_answers(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.setattr(adopt, "PARAMS", folder / "params.yaml")
    before = PARAMS.read_text()
    (folder / "params.yaml").write_text(before)
    monkeypatch.setattr(adopt, "choices", lambda claims, results: {"trainer.optimizer": ("adamw", "x")})
    assert adopt.main([str(folder)]) == 0
    assert "Not written" in capsys.readouterr().out and (folder / "params.yaml").read_text() == before
