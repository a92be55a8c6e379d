"""The stages of the ladder where nothing is trained: they say why, and `pretrain` can go on."""

import json
from dataclasses import replace

import pytest

from stages import forecast, ladder
from stages.contract.params import load_params
from stages.scaling.budget import plan_of
from stages.scaling.ladder import POINT
from tests.corpus.helpers import stage_run


@pytest.fixture
def params(tmp_path, monkeypatch):
    known = load_params()
    monkeypatch.chdir(tmp_path)
    return known


@pytest.mark.parametrize(("share", "given", "says"), [(0.0, False, "its share is 0"), (0.1, True, "holds a model")])
def test_rung_that_is_not_trained_says_why(params, share, given, says, tmp_path, capsys):
    if given:
        (tmp_path / params.init).mkdir(parents=True)
        (tmp_path / params.init / "config.json").write_text("{}")
    run = replace(stage_run("ladder", params, tmp_path), arguments={"share": share, "tokens_per_parameter": 2.0})
    ladder.main(run)
    assert says in capsys.readouterr().out
    assert not (run.out / POINT).exists() and json.loads((run.reports / "metrics.json").read_text()) == {}


def test_forecast_without_rungs_lets_pretrain_begin(params, tmp_path, capsys):
    (tmp_path / "out/size").mkdir(parents=True)
    plan_of(params, 4096, 1e7).write(tmp_path / "out/size/plan.json")
    run = stage_run("forecast", params, tmp_path)
    forecast.main(run)
    assert capsys.readouterr().out.startswith("no forecast: it needs rungs of 3 budgets")
    assert (run.out / "written").read_text() == forecast.WRITTEN
    assert json.loads((run.out / "forecast.json").read_text())["loss"] is None
    assert json.loads((run.reports / "headline.json").read_text()) == {}
    assert (run.reports / "law.csv").read_text() == "flops,loss,split\n"
