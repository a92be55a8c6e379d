"""What a rule gives for an answer."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.trainer.objectives.rewards import RULES, last_number, number, overlap


@pytest.mark.parametrize(
    ("answer", "chosen", "reward"),
    [
        ("The cat sat.", "the cat sat", 1),
        ("the cat", "The cat sat on the mat", 2 * 2 / (2 + 6)),
        ("the the the", "the cat", 2 * 1 / (3 + 2)),
        ("a dog", "the cat", 0),
        ("", "the cat", 0),
        ("", "", 0),
        ("Größe, ja!", "größe", 2 / 3),
        ("un e\u0301te\u0301", "Un été", 1),
    ],
)
def test_overlap_is_the_f1_of_words(answer, chosen, reward):
    assert overlap(answer, chosen) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("She has 3 apples and 12 pears.", "12"),
        ("#### 1,234", "1234"),
        ("It costs $1,234,567.50.", "1234567.5"),
        ("the set 1,2,3", "3"),
        ("in 1999, then", "1999"),
        ("it is -7", "-7"),
        ("it is \N{MINUS SIGN}7 degrees", "-7"),
        ("10-3", "3"),
        ("2^3-1", "1"),
        ("72.00", "72"),
        ("none at all", None),
    ],
)
def test_the_last_number(text, last):
    assert last_number(text) == (None if last is None else Decimal(last))


@pytest.mark.parametrize(
    ("answer", "chosen", "reward"),
    [("so 72.0", "#### 72", 1), ("72, no, 73", "72", 0), ("none", "72", 0), ("72", "none", 0), ("", "", 0)],
)
def test_number_compares_the_last_of_both(answer, chosen, reward):
    assert number(answer, chosen) == reward


@pytest.mark.parametrize("rule", RULES.values())
@given(answer=st.text(), chosen=st.text())
def test_every_reward_of_any_text_is_between_0_and_1(rule, answer, chosen):
    assert 0 <= rule(answer, chosen) <= 1
