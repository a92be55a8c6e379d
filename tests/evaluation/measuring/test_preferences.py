import math

import numpy as np
import pytest

from stages.corpus.chats.encoding import encode_pair, encode_pairs, problems, render
from stages.corpus.tokens.vocabulary import TURN_END
from stages.evaluation.measuring import preferences as pref
from stages.evaluation.paired import paired_difference


def record(prompt="Which one?", chosen="This one.", rejected="That other one."):
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def answer(tokenizer, pair, side):
    ids, positions = getattr(pair, side), getattr(pair, f"{side}_positions")
    return tokenizer.decode([ids[p] for p in positions])


def test_an_answer_is_what_follows_the_prompt_with_the_end_of_its_turn(tokenizer):
    earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    pair = encode_pair(tokenizer, {**record(), "prompt": earlier + record()["prompt"]}, context=128)
    assert answer(tokenizer, pair, "chosen") == f"This one.{TURN_END}"
    assert answer(tokenizer, pair, "rejected") == f"That other one.{TURN_END}"
    assert not pair.cut


def test_a_long_prompt_loses_the_same_left_part_for_both_answers(tokenizer):
    pair = encode_pair(tokenizer, record(prompt="word " * 300), context=64)
    assert answer(tokenizer, pair, "chosen") == f"This one.{TURN_END}"
    assert max(pair.chosen_positions[-1], pair.rejected_positions[-1]) == 64
    assert pair.chosen[: pair.chosen_positions[0]] == pair.rejected[: pair.rejected_positions[0]]
    assert pair.cut


def test_an_answer_longer_than_the_context_loses_its_end(tokenizer, model):
    pair = encode_pair(tokenizer, record(chosen="word " * 300), context=64)
    assert pair.chosen_positions.tolist() == list(range(1, 65))
    assert pair.cut
    assert np.isfinite(pref.answer_logprobs(model, [pair])).all()


def test_answers_that_are_the_same_once_cut_are_no_pair(tokenizer):
    records = [record(chosen="word " * 99 + end, rejected="word " * 99 + "bad") for end in ("good", "bad again")]
    records += [record(), record(chosen="word " * 99, rejected="words " * 99)]
    pairs = list(encode_pairs(tokenizer, records, context=64))
    assert [pair.problem for pair in pairs] == ["answers are the same once cut"] * 2 + ["", ""]
    assert problems(records * 2, pairs * 2) == {"answers are the same once cut": 2}, "each record counts once"


def test_log_probabilities_equal_transformers_loss(tokenizer, model):
    import torch

    pair = encode_pair(tokenizer, record(), context=128)
    found = pref.answer_logprobs(model, [pair])
    for column, side in enumerate(("chosen", "rejected")):
        ids, written = render(tokenizer, record()["prompt"] + record()[side])
        labels = torch.full((1, len(ids)), -100)
        labels[0, written] = torch.tensor(ids)[written]
        with torch.inference_mode():
            loss = float(model(input_ids=torch.tensor([ids]), labels=labels).loss)
        assert found[0, column] == pytest.approx(-loss * len(written), abs=1e-4)


def test_standard_errors_by_hand():
    assert pref.accuracy(np.array([True, True, True, False])) == pytest.approx((0.75, math.sqrt(0.75 * 0.25 / 4)))
    before = np.array([True, False, False, False, True, True])
    after = np.array([True, True, True, False, False, True])
    # changes: 0 1 1 0 -1 0, mean 1/6, variance (4 x (1/6)^2 ... ) / 5
    changes = [0, 1, 1, 0, -1, 0]
    variance = sum((c - 1 / 6) ** 2 for c in changes) / 5
    assert paired_difference(before, after) == pytest.approx((1 / 6, math.sqrt(variance / 6)))
    assert paired_difference(before[:1], after[:1]) == (0.0, math.inf)


@pytest.mark.parametrize(
    ("difference", "stderr", "said"),
    [
        (0.05, 0.02, "raised by more"),
        (0.02, 0.02, "not changed by more"),
        (-0.01, 0.02, "not changed by more"),
        (-0.05, 0.02, "lowered by more"),
        (0.0, 0.0, "not changed on any pair"),
        (1.0, math.inf, "not changed by more"),
    ],
)
def test_verdict_says_no_more_than_the_error_allows(difference, stderr, said):
    assert pref.preference_verdict(difference, stderr).startswith(said)


def test_measure_with_lengths_and_rewards():
    sft = np.array([[-10.0, -12.0], [-9.0, -8.0]])
    dpo = np.array([[-9.0, -13.0], [-8.0, -9.0]])
    lengths = np.array([[2, 4], [3, 2]])
    found = pref.preference_figures({"base": sft, "sft": sft, "dpo": dpo}, lengths, beta=0.5)
    assert found["sft"]["accuracy"] == 0.5 and found["dpo"]["accuracy"] == 1.0
    assert found["dpo"]["per_token_accuracy"] == 0.5  # -4.5 < -3.25, -2.67 > -4.5
    assert found["sft_to_dpo"]["difference"] == 0.5
    assert found["reward"]["margin"] == pytest.approx(0.5 * 2)
    assert found["reward"]["chosen"] == pytest.approx(0.5) and found["reward"]["accuracy"] == 1.0
