import copy

import numpy as np
import pytest

from stages.contract import UserError
from stages.evaluation.measuring.scoring import length_batches, token_logprobs


def sequences(seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(4, 512, size).tolist() for size in (2, 129, 17, 64, 65, 5, 129, 33)]


def everything(rows):
    return [np.arange(1, len(row)) for row in rows]


def test_batched_equals_the_loss_transformers_computes_one_by_one(model):
    import torch

    rows = sequences()
    scored = token_logprobs(model, rows, everything(rows))
    for row, values in zip(rows, scored, strict=True):
        ids = torch.tensor([row])
        with torch.inference_mode():
            logits = model(input_ids=ids[:, :-1]).logits.log_softmax(-1)
        expected = logits[0].gather(1, ids[0, 1:, None])[:, 0].double().numpy()
        np.testing.assert_allclose(values, expected, atol=1e-5)
    ids = torch.tensor([rows[3]])
    with torch.inference_mode():
        assert -scored[3].mean() == pytest.approx(float(model(input_ids=ids, labels=ids).loss), abs=1e-5)


def test_neighbours_in_a_batch_do_not_matter(model):
    rows = sequences()
    together = token_logprobs(model, rows, everything(rows))
    for row, values in zip(rows, together, strict=True):
        (alone,) = token_logprobs(model, [row], everything([row]))
        np.testing.assert_allclose(values, alone, atol=1e-5)


def test_only_the_asked_positions_come_back_in_order(model):
    rows = sequences()
    full = token_logprobs(model, rows, everything(rows))
    asked = [np.array([1]), np.array([2, 100, 128]), *[np.array([], dtype=int)] * 5, np.array([32])]
    part = token_logprobs(model, rows, asked)
    for values, positions, reference in zip(part, asked, full, strict=True):
        np.testing.assert_allclose(values, reference[positions - 1] if len(positions) else [], atol=1e-5)


@pytest.mark.parametrize("position", [0, 129])
def test_a_position_outside_the_context_is_refused(model, position):
    with pytest.raises(ValueError, match=r"1\.\.128"):
        token_logprobs(model, [[5] * 140], [np.array([position])] if position else [np.array([0, 1])])


def test_weights_that_are_not_numbers_are_named(model):
    broken = copy.deepcopy(model)
    broken.model.norm.weight.data[0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        token_logprobs(broken, [[5, 6, 7]], [np.array([1, 2])])


def test_batches_hold_every_index_once_and_keep_the_limit():
    lengths = np.array([5, 0, 900, 17, 17, 60, 1, 0])
    found = list(length_batches(lengths, 128))
    assert sorted(i for batch in found for i in batch) == [0, 2, 3, 4, 5, 6]
    assert all(len(b) == 1 or len(b) * lengths[b].max() <= 128 for b in found)
    assert len(found) < 6
