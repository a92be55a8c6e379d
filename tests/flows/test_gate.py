import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.gate import decide, paired

finite = st.floats(-1e6, 1e6)
margins, errors = st.floats(0, 10), st.floats(1, 10)


@st.composite
def two_models(draw, least=2):
    """Scores of two models on the same examples."""
    pairs = draw(st.lists(st.tuples(finite, finite), min_size=least, max_size=20))
    return {str(i): a for i, (a, _) in enumerate(pairs)}, {str(i): b for i, (_, b) in enumerate(pairs)}


def test_a_hand_computed_difference():
    champion, new = {"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 2.0, "b": 4.0, "c": 6.0}  # differences 1, 2, 3
    assert paired(champion, new) == (2.0, pytest.approx(1 / math.sqrt(3)))
    assert decide(champion, new, margin=0.8, errors=2.0).promote  # 2 > 0.8 + 2 * 0.577
    refused = decide(champion, new, margin=0.9, errors=2.0)
    assert not refused.promote
    assert refused.reason == (
        "not better by enough: +2 ± 0.58 on 3 examples; more than 2.055 is asked, a margin of 0.9 and 2 standard errors"
    )


@given(two_models(), margins, errors)
def test_swapping_the_models_turns_the_difference_and_never_promotes_both(models, margin, errors):
    champion, new = models
    there, back = decide(champion, new, margin, errors), decide(new, champion, margin, errors)
    assert there.difference == -back.difference
    assert there.stderr == back.stderr
    assert not (there.promote and back.promote)


@given(two_models(), margins, errors)
def test_within_its_own_error_or_the_margin_a_difference_never_promotes(models, margin, errors):
    decision = decide(*models, margin, errors)
    if decision.promote:
        assert decision.difference > decision.stderr
        assert decision.difference > margin
    if decision.difference <= margin or decision.difference <= decision.stderr:
        assert not decision.promote


@given(two_models(), margins, errors, st.data())
def test_a_larger_margin_or_more_errors_never_promote_what_less_refuse(models, margin, errors, data):
    if not decide(*models, margin, errors).promote:
        assert not decide(*models, margin + data.draw(margins), errors).promote
        assert not decide(*models, margin, errors + data.draw(st.floats(0, 10))).promote


@given(two_models(), margins, errors, st.randoms())
def test_the_order_of_the_examples_does_not_matter(models, margin, errors, random):
    shuffled = []
    for scores in models:
        items = list(scores.items())
        random.shuffle(items)
        shuffled.append(dict(items))
    assert decide(*shuffled, margin, errors) == decide(*models, margin, errors)


@given(two_models(least=1), st.sampled_from([math.nan, math.inf, -math.inf, None]), st.booleans(), st.data())
def test_a_figure_that_is_missing_or_not_finite_never_promotes(models, bad, in_new, data):
    champion, new = models
    broken = new if in_new else champion
    broken[data.draw(st.sampled_from(sorted(broken)))] = bad
    assert not decide(champion, new, 0.0, 1.0).promote
    if in_new:
        assert not decide(None, new, 0.0, 1.0).promote


@given(two_models(), margins, errors)
def test_the_first_model_is_promoted_if_its_figures_are_finite(models, margin, errors):
    assert decide(None, models[1], margin, errors).promote


def test_the_champion_itself_is_never_better():
    scores = {"a": 0.1, "b": 0.7}
    assert not decide(scores, dict(scores), 0.0, 1.0).promote


def test_the_same_gain_everywhere_has_no_error_and_is_promoted():
    decision = decide({"a": 1.0, "b": 2.0}, {"a": 1.5, "b": 2.5}, 0.0, 2.0)
    assert (decision.promote, decision.difference, decision.stderr) == (True, 0.5, 0.0)


@pytest.mark.parametrize(
    ("champion", "new", "says"),
    [
        (None, {}, "the new model has no figure"),
        ({}, {"a": 1.0}, "the champion has no figure"),
        ({"a": 1.0, "b": 1.0}, {"a": 9.0, "c": 9.0}, "not measured on the same examples: 2 are in one set only"),
        ({"a": 1.0}, {"a": 9.0}, "a single example carries no standard error"),
        ({"a": 1.0, "b": 1.0}, {"a": 9.0, "b": math.nan}, "1 of 2 figures that are missing or not finite, 'b' first"),
        ({"a": -1e308, "b": 0.0}, {"a": 1e308, "b": 0.0}, "too large to be computed"),
        ({"a": -1e308, "b": 1e308}, {"a": 1e308, "b": -1e308}, "too large to be computed"),
        ({"a": 0.0, "b": 0.0}, {"a": 1e200, "b": 2e200}, "too large to be computed"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_reason(champion, new, says):
    decision = decide(champion, new, 0.0, 1.0)
    assert not decision.promote
    assert says in decision.reason


@pytest.mark.parametrize(("margin", "errors"), [(-0.1, 2), (math.nan, 2), (math.inf, 2), (0, 0.9), (0, math.nan)])
def test_a_margin_or_a_number_of_errors_that_would_let_anything_through_is_an_error(margin, errors):
    with pytest.raises(ValueError, match="margin must be at least 0"):
        decide({"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 2.0}, margin, errors)
