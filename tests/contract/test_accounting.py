import pytest

from stages.contract import Account, UserError

CHATS = Account("data.sft", "conversations", 1357, 890, {"no answer": 448, "not JSON": 5}, {"held out": 10, "leak": 4})


def test_line_names_the_three_most_frequent_reasons():
    assert CHATS.line() == (
        "1,357 conversations read, 890 used, 453 rejected (448 no answer, 5 not JSON), 14 dropped (10 held out)"
    )
    assert Account("data.sft", "pairs", 3, 3).line() == "3 pairs read, 3 used"


def test_figures_hold_every_reason_and_the_totals():
    assert CHATS.figures() == {
        "read": 1357, "used": 890,
        "rejected": {"total": 453, "no answer": 448, "not JSON": 5},
        "dropped": {"total": 14, "held out": 10, "leak": 4},
    }  # fmt: skip


def test_too_large_a_share_of_rejected_records_stops_the_stage():
    CHATS.check(0.34)
    with pytest.raises(UserError, match=r"data.sft: 1,357 .* 33.4% rejected, above max_rejected \(33.0%\)"):
        CHATS.check(0.33)
    Account("data.sft", "pairs", 0, 0).check(0.0)
