"""muP's factors by width and depth, and plans that carry them."""

import json

import pytest

from benchmarks import mup
from stages.contract.errors import UserError
from stages.contract.params import Rung
from stages.scaling import budget, laws
from stages.scaling.budget import check_budget, plan_of, rung_plan
from stages.scaling.mup import BASE, Factors, Mup
from stages.scaling.plan import Plan
from stages.scaling.shapes import Shape
from tests.scaling.test_ladder import TOKENS, VOCABULARY, large, target

LAYER = [
    "input_layernorm",
    *(f"self_attn.{x}_proj" for x in "qkvo"),
    *(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
]
NAMES = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"] + [
    f"model.layers.0.{part}.weight" for part in [*LAYER, "post_attention_layernorm"]
]


@pytest.mark.parametrize("power", [0.5, 1.0])
@pytest.mark.parametrize("tied", [False, True])
def test_base_model_has_the_standard_parametrization(power, tied):
    base = Mup(1.0, 1.0, 1.0, tied)
    assert Mup.of(BASE, BASE.hidden_size) == Mup(1.0, 1.0, 1.0, BASE.tied)
    assert {base.factors(name, power) for name in NAMES} == {Factors(1.0, 1.0, 1.0)}


def test_factors_follow_the_published_table():
    """CompleteP's table 1 for alpha = 1, its multipliers folded into the weights."""
    wide = Mup(width=4.0, depth=2.0, head=1.0, tied=False)
    factors = {name.split(".")[-2]: wide.factors(name, 1.0) for name in NAMES}
    assert factors["embed_tokens"] == factors["norm"] == Factors(1, 1, 1 / 4)
    assert factors["q_proj"] == factors["up_proj"] == Factors(1 / 2, 1 / 4, 1 / 8)
    assert factors["o_proj"] == factors["down_proj"] == Factors(1 / 4, 1 / 8, 1 / 4)
    assert factors["input_layernorm"] == Factors(1, 1, 1 / 8)
    assert factors["lm_head"] == Factors(1 / 4, 1 / 4, 1)
    assert wide.factors("lm_head.weight", 0.5) == Factors(1 / 4, 1 / 4, 1), "beside Muon, AdamW trains the head"
    assert wide.factors("model.layers.1.mlp.up_proj.weight", 0.5).rate == 1 / 2


def test_scores_are_divided_by_the_head_size():
    """Queries and keys of heads 16 times as large: 1/head is a quarter of 1/sqrt(head)."""
    large, base = (Mup(1.0, 1.0, head, False).factors("self_attn.q_proj.weight", 1.0).size for head in (16.0, 1.0))
    assert (large / base) ** 2 == 1 / 4


def test_plan_has_step_laws_rate_of_the_base_and_is_read_back(tmp_path):
    plan = target(large(parametrization="mup"))
    assert plan.mup_base_width == BASE.hidden_size < plan.model["hidden_size"]
    rate = laws.learning_rate(BASE.block_parameters, plan.tokens, plan.batch_tokens)
    assert plan.learning_rate == pytest.approx(rate, rel=1e-3)
    plan.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == plan


def test_standard_plan_does_not_mention_mup(tmp_path):
    target(large()).write(tmp_path / "plan.json")
    assert "mup_base_width" not in json.loads((tmp_path / "plan.json").read_text())


def test_stated_rate_holds_for_every_rung():
    params = large(parametrization="mup", learning_rate=3e-3)
    plans = [rung_plan(params, Rung(share=s, tokens_per_parameter=20), VOCABULARY, TOKENS) for s in (0.001, 0.1)]
    assert [plan.learning_rate for plan in [*plans, target(params)]] == [3e-3] * 3
    assert plans[0].model["hidden_size"] < plans[1].model["hidden_size"]


def test_mup_refuses_a_model_to_continue(monkeypatch):
    monkeypatch.setattr(budget, "has_model", lambda params: True)
    for check in (check_budget, lambda params: plan_of(params, VOCABULARY, TOKENS)):
        with pytest.raises(UserError, match=r"sizing.parametrization: mup .* data/init holds a trained model") as error:
            check(large(parametrization="mup"))
        assert "\n" not in str(error.value)
    check_budget(large())


def test_tied_models_shrink_their_logits_by_the_last_norm():
    shape = Shape.of(BASE.config() | {"hidden_size": 1024, "tie_word_embeddings": True})
    wide = Mup.of(shape, BASE.hidden_size)
    assert wide.factors("model.norm.weight", 1.0) == Factors(1 / 4, 1 / 4, 1)
    assert wide.factors("model.embed_tokens.weight", 1.0) == Factors(1, 1, 1 / 4)


def test_benchmark_searches_until_the_best_rate_is_inside():
    """The loss is a parabola in the power of two, lowest at -10.3."""
    losses: dict[int, float] = {}
    while (power := mup.next_power(losses)) is not None:
        losses[power] = 4 + 0.1 * (power + 10.3) ** 2
    assert sorted(losses) == [-11, -10, -9, -8, -7]
    assert mup.best_power(losses) == pytest.approx(-10.3)


def test_benchmark_prints_what_all_parts_found(tmp_path, capsys):
    for part, width, best in ((1, 64, -8), (2, 1024, -9)):
        lines = [f"adamw,mup,{width},{power},{4 + abs(power - best)}" for power in range(-10, -6)]
        (tmp_path / f"mup-{part}-of-2.csv").write_text("\n".join(lines) + "\n")
    mup.print_table(mup.read_table(tmp_path))
    printed = capsys.readouterr().out.splitlines()
    assert next(line for line in printed if line.startswith("adamw mup")).split()[-2:] == ["0.50x", "2.00"]
    assert next(line for line in printed if line.startswith("muon mup")).endswith("not all searched yet")
