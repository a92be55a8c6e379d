import math
import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flows.retraining import scores
from flows.retraining.gate import decide
from flows.retraining.scores import METRICS, Score
from stages.contract.params import Gate
from stages.evaluation.paired import paired_difference

finite = st.floats(-1e6, 1e6)
margins, errors = st.floats(0, 10), st.floats(1, 10)


def gate(errors=2.0, examples=2, better_by=None, **not_worse_by):
    """A gate whose metrics must not be worse by more than their values, or better by more than those of better_by."""
    return Gate(
        metrics={"not_worse_by": not_worse_by, "better_by": better_by or {}}, errors=errors, examples=examples
    )  # fmt: skip


def totals(values, weight=1.0):
    return {str(i): Score(value, weight) for i, value in enumerate(values)}


def judge(champion, new, rules, sources=(), metric="preferences"):
    return decide({metric: totals(champion)}, {metric: totals(new)}, rules, sources)


@st.composite
def two_models(draw, least=2):
    """Scores of two models on the same examples."""
    pairs = draw(st.lists(st.tuples(finite, finite), min_size=least, max_size=20))
    return [a for a, _ in pairs], [b for _, b in pairs]


def test_hand_computed_difference():
    champion, new = [1.0, 2.0, 3.0], [2.0, 4.0, 6.0]  # differences 1, 2, 3
    (compared,) = judge(champion, new, gate(preferences=0.0)).comparisons
    assert (compared.difference, compared.stderr) == pytest.approx((2.0, 1 / math.sqrt(3)))
    assert judge(champion, new, gate(better_by={"preferences": 0.8})).promote  # 2 > 0.8 + 2 * 0.577
    refused = judge(champion, new, gate(better_by={"preferences": 0.9}))
    assert not refused.promote
    assert refused.reason == "not better beyond 2 standard errors: preferences 2 → 4 (+2 ± 0.58 on 3 examples)"


def test_weighted_difference_is_that_of_the_figures():
    """bits per byte: documents of different size; the standard error is a jackknife's, near enough."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(10, 1000, 200).astype(float)
    before, after = -2.0 * sizes + rng.normal(0, 9, 200), -1.9 * sizes + rng.normal(0, 9, 200)
    difference, stderr = paired_difference(before, after, sizes)
    assert difference == pytest.approx(after.sum() / sizes.sum() - before.sum() / sizes.sum())
    change, whole = after - before, sizes.sum()
    without = (change.sum() - change) / (whole - sizes)
    assert stderr == pytest.approx(math.sqrt(199 / 200 * ((without - without.mean()) ** 2).sum()), rel=0.05)
    assert paired_difference(before, after, np.ones(200)) == pytest.approx(paired_difference(before, after))


@given(two_models(), errors)
def test_swapped_models_are_never_both_promoted(models, error):
    champion, new = models
    there, back = (judge(*pair, gate(error, preferences=0.0)) for pair in ((champion, new), (new, champion)))
    assert not (there.promote and back.promote)
    assert there.comparisons[0].difference == -back.comparisons[0].difference
    assert there.comparisons[0].stderr == back.comparisons[0].stderr


@given(two_models(), margins, errors)
def test_difference_within_its_error_never_promotes(models, margin, error):
    decision = judge(*models, gate(error, better_by={"preferences": margin}))
    (compared,) = decision.comparisons
    assert decision.promote == (compared.difference > margin + error * compared.stderr)
    if judge(*models, gate(error, preferences=margin)).promote:
        assert compared.difference > error * compared.stderr


@given(two_models(), margins, errors, st.data())
def test_stricter_gate_never_promotes_more(models, margin, error, data):
    if not judge(*models, gate(error, better_by={"preferences": margin})).promote:
        larger = margin + data.draw(margins)
        assert not judge(*models, gate(error, better_by={"preferences": larger})).promote
        assert not judge(*models, gate(error + data.draw(errors), better_by={"preferences": margin})).promote


@given(two_models(), errors, st.randoms())
def test_order_of_examples_does_not_matter(models, error, random):
    shuffled = []
    for values in models:
        items = list(totals(values).items())
        random.shuffle(items)
        shuffled.append({"preferences": dict(items)})
    before, after = decide(*shuffled, gate(error, preferences=0.0)), judge(*models, gate(error, preferences=0.0))
    assert before.promote == after.promote and before.comparisons == after.comparisons


@given(two_models(), st.sampled_from([math.nan, math.inf, -math.inf]), st.booleans(), st.data())
def test_figure_that_is_not_finite_never_promotes(models, bad, in_new, data):
    champion, new = models
    broken = new if in_new else champion
    broken[data.draw(st.integers(0, len(broken) - 1))] = bad
    assert not judge(champion, new, gate(preferences=0.0)).promote
    if in_new:
        assert not decide(None, {"preferences": totals(new)}, gate(preferences=0.0)).promote


@given(two_models())
def test_first_model_is_promoted_if_its_figures_are_finite(models):
    assert decide(None, {"preferences": totals(models[1])}, gate(preferences=0.0)).promote


@given(two_models(least=3), two_models(least=3), errors)
def test_one_worse_metric_refuses_whatever_the_others(one, other, error):
    rules = gate(error, preferences=0.0, assistant_loss=0.0)
    champion = {"preferences": totals(one[0]), "assistant_loss": totals(other[0])}
    new = {"preferences": totals(one[1]), "assistant_loss": totals(other[1])}
    decision = decide(champion, new, rules)
    worse = [c for c in decision.comparisons if c.difference < -error * c.stderr]
    better = [c for c in decision.comparisons if c.difference > error * c.stderr]
    assert decision.promote == (bool(better) and not worse)


def test_champion_itself_is_never_better():
    assert not judge([0.1, 0.7], [0.1, 0.7], gate(preferences=0.0)).promote


def test_same_gain_everywhere_has_no_error_and_is_promoted():
    decision = judge([1.0, 2.0], [1.5, 2.5], gate(preferences=0.0))
    assert decision.promote and decision.comparisons[0].stderr == 0.0


NIGHT = {  # as the default gate: the champion, a model of better conversations, one without fine-tuning
    "bits_per_byte": ([-2.40] * 20, [-2.402, -2.398] * 10, [-2.39] * 20),
    "assistant_loss": ([-4.95] * 40, [-4.85, -4.78] * 20, [-5.3, -5.2] * 20),
    "preferences": ([1.0, 0.0] * 50, [1.0, 0.0] * 49 + [1.0, 1.0], [1.0, 0.0] * 50),
}
DEFAULT = gate(examples=10, bits_per_byte=0.01, assistant_loss=0.01, preferences=0.0)


def night(model, sources, rules=DEFAULT):
    champion, new = ({name: totals(rows[k]) for name, rows in NIGHT.items()} for k in (0, model))
    return decide(champion, new, rules, sources)


def test_better_conversations_are_promoted_by_what_they_are_for():
    decision = night(1, {"sft"})
    assert decision.promote
    assert decision.reason.startswith("better beyond 2 standard errors: assistant_loss 4.95 → 4.815 (-0.135 ± ")
    assert "; not worse: bits_per_byte 2.4 → 2.4" in decision.reason
    assert not night(1, {"pretrain"}).promote  # for which bits per byte judges
    assert night(1, set()).promote  # a change of parameters: any metric


def test_worse_fine_tuning_is_refused_though_bits_are_better():
    decision = night(2, set())
    assert not decision.promote
    assert decision.reason.startswith("worse beyond 2 standard errors: assistant_loss 4.95 → 5.25 (+0.3 ± ")


def test_metric_that_must_be_better_decides_alone():
    assert night(1, {"pretrain"}, gate(examples=10, better_by={"assistant_loss": 0.1})).promote
    assert not night(1, {"sft"}, gate(examples=10, better_by={"assistant_loss": 0.2})).promote


def test_metric_of_few_examples_decides_nothing():
    champion, new = {"bits_per_byte": totals([-2.0] * 6)}, {"bits_per_byte": totals([-9.0] * 6)}
    champion["assistant_loss"], new["assistant_loss"] = totals([-2.0] * 20), totals([-1.9] * 20)
    assert decide(champion, new, DEFAULT).promote
    refused = decide(champion, new, gate(examples=10, better_by={"bits_per_byte": 0.0}))
    assert "bits_per_byte: 6 examples are too few, 10 are needed" in refused.reason
    del champion["assistant_loss"], new["assistant_loss"]
    assert "no metric has 10 examples" in decide(champion, new, DEFAULT).reason


@pytest.mark.parametrize(
    ("champion", "new", "says"),
    [
        (None, [], "the new model has no figure"),
        ([], [1.0, 1.0], "not measured on the same examples: 2 are in one set only"),
        ([1.0, 1.0], [1.0, 1.0, 9.0], "not measured on the same examples: 1 are in one set only"),
        ([1.0], [9.0], "1 examples are too few, 2 are needed"),
        ([1.0, 1.0], [9.0, math.nan], "1 of 2 figures that are missing or not finite, 'preferences 1' first"),
        ([math.nan, 1.0], [9.0, 1.0], "the champion has 1 of 2 figures that are missing"),
        ([-1e308, 0.0], [1e308, 0.0], "too large to be computed"),
        ([-1e308, 1e308], [1e308, -1e308], "too large to be computed"),
        ([0.0, 0.0], [1e200, 2e200], "too large to be computed"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(champion, new, says):
    before = None if champion is None else {"preferences": totals(champion)}
    decision = decide(before, {"preferences": totals(new)}, gate(preferences=0.0))
    assert not decision.promote
    assert says in decision.reason and "\n" not in decision.reason


def test_params_name_the_metrics_of_the_table():
    (pattern,) = re.findall(r"\^\((.*)\)\$", str(Gate.model_json_schema()))
    assert set(pattern.split("|")[: len(METRICS)]) == set(METRICS)


@given(st.lists(st.tuples(st.floats(-1e3, 0), st.integers(1, 10**6)), min_size=1, max_size=9))
def test_figure_is_the_sum_of_totals_over_the_sum_of_weights(rows):
    measured = {str(i): Score(total, weight) for i, (total, weight) in enumerate(rows)}
    assume(any(total for total, _ in rows))
    expected = -sum(total for total, _ in rows) / sum(weight for _, weight in rows)
    assert scores.figure(measured, "assistant_loss") == pytest.approx(expected)
