"""Rungs are planned as the target is, and their points forecast it, or say why not."""

import numpy as np
import pytest

from stages.contract.errors import UserError
from stages.contract.params import Params, Rung, load_params
from stages.scaling.budget import check_budget, plan_of, rung_plan
from stages.scaling.fitting import Law
from stages.scaling.ladder import Point, Prediction, fit_ladder, predict, read_points
from stages.scaling.plan import Plan

LAW = Law(1.82, 482.0, 2085.0, 0.348, 0.366, (1.0, 1.0))
RUNGS = [Rung(share=share, tokens_per_parameter=ratio) for share in (0.003, 0.01, 0.03) for ratio in (10, 40)]
VOCABULARY, TOKENS = 32768, 1e12


def large(**sizing: object) -> Params:
    derived = {"tokens_per_parameter": 20.0, "head_dim": "auto", "batch_tokens": "auto", "learning_rate": "auto"}
    params = load_params()
    return params.model_copy(update={"budget_flops": 1e19, "sizing": params.sizing.model_copy(update=derived | sizing)})


def target(params: Params) -> Plan:
    return plan_of(params, VOCABULARY, TOKENS)


def points(rungs: list[Rung], params: Params) -> list[Point]:
    """What the rungs would reach if LAW held."""
    plans = [rung_plan(params, rung, VOCABULARY, TOKENS) for rung in rungs]
    return [
        Point.of(rung, plan, float(LAW.loss(plan.matmul_parameters, plan.tokens)))
        for rung, plan in zip(rungs, plans, strict=True)
    ]


def test_rung_spends_its_share_at_its_own_ratio():
    params = large()
    for rung in RUNGS:
        plan = rung_plan(params, rung, VOCABULARY, TOKENS)
        assert plan.flops == pytest.approx(rung.share * params.budget_flops, rel=0.01)
        assert plan.tokens / plan.matmul_parameters == pytest.approx(rung.tokens_per_parameter, rel=0.5)


def test_plan_of_a_rung_does_not_depend_on_the_others():
    alone, among = (large(rungs=rungs) for rungs in (RUNGS[:1], RUNGS))
    assert rung_plan(alone, RUNGS[0], VOCABULARY, TOKENS) == rung_plan(among, RUNGS[0], VOCABULARY, TOKENS)


def test_stated_batch_and_rate_follow_step_law_to_the_rung():
    params = large(batch_tokens=2**18, learning_rate=1e-3)
    small, whole = (
        rung_plan(params, Rung(share=share, tokens_per_parameter=20), VOCABULARY, TOKENS) for share in (0.01, 1)
    )
    assert whole == target(params)
    assert small.batch_tokens / whole.batch_tokens == pytest.approx(0.01**0.2855, rel=0.25)
    assert small.learning_rate / whole.learning_rate == pytest.approx(0.01**-0.203, rel=0.01)


def test_share_without_a_plan_names_the_nearest_that_has_one():
    params = large(rungs=[Rung(share=1e-16, tokens_per_parameter=20)])
    with pytest.raises(UserError, match=r"sizing.rungs: share 1e-16: .* Raise it to (\S+), or remove") as error:
        check_budget(params)
    assert "\n" not in str(error.value)
    nearest = float(str(error.value).split("Raise it to ")[1].split(",")[0])
    check_budget(large(rungs=[Rung(share=nearest * 1.01, tokens_per_parameter=20)]))
    check_budget(large(rungs=[Rung(share=0, tokens_per_parameter=20)]))


def test_forecast_from_a_known_law_is_near_and_inside():
    params = large()
    known, plan = points(RUNGS, params), target(params)
    prediction = predict(known, fit_ladder(known), plan)
    true = float(LAW.loss(plan.matmul_parameters, plan.tokens))
    assert prediction.loss == pytest.approx(true, rel=0.01)
    assert prediction.low < true < prediction.high
    assert prediction.rungs == 6 and prediction.largest_share == pytest.approx(0.03, rel=0.01)
    assert prediction.flops_share == pytest.approx(sum(rung.share for rung in RUNGS), rel=0.01)


def test_fewer_than_three_budgets_make_no_forecast_and_a_reason():
    params = large()
    for rungs in ([], RUNGS[:1], RUNGS[:4]):  # the last four are of two budgets
        known = points(rungs, params)
        prediction = predict(known, fit_ladder(known), target(params))
        assert prediction.loss is None and "3 budgets" in prediction.line()
        assert prediction.line().startswith("no forecast: ") and f"{len(rungs)} were trained" in prediction.line()


def test_repeated_tokens_of_a_rung_are_discounted():
    params = large(max_epochs=8)
    once, often = (Point.of(RUNGS[0], rung_plan(params, RUNGS[0], VOCABULARY, n), 3.0) for n in (TOKENS, 1e8))
    assert once.worth_tokens == once.tokens and often.unique_tokens < often.worth_tokens < often.tokens


def test_points_are_read_by_their_rungs_and_forecasts_as_written(tmp_path):
    params = large()
    for k, point in enumerate(points(RUNGS, params)):
        (tmp_path / str(k)).mkdir()
        point.write(tmp_path / str(k))
    assert read_points(RUNGS[2:4], tmp_path) == points(RUNGS[2:4], params), "a rung that was removed leaves its folder"
    known = read_points(RUNGS, tmp_path)
    prediction = predict(known, fit_ladder(known), target(params))
    prediction.write(tmp_path / "forecast.json")
    assert Prediction.read(tmp_path / "forecast.json") == prediction
    (tmp_path / "0/point.json").write_text('{"share": 0.1}')
    with pytest.raises(UserError, match="dvc repro --force ladder"):
        read_points(RUNGS, tmp_path)


def test_points_of_equal_budget_are_in_a_stable_order(tmp_path):
    params = large()
    for k in np.random.default_rng(0).permutation(len(RUNGS)):
        (tmp_path / str(k)).mkdir()
        points(RUNGS, params)[k].write(tmp_path / str(k))
    assert read_points(RUNGS[::-1], tmp_path) == read_points(RUNGS, tmp_path)
