import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.trainer.loop.rows import PackedRows, collate, split_rows
from stages.trainer.model import growth


def test_a_deepened_model_repeats_its_layers_in_turn(tiny):
    small = tiny()
    depth = small.config.num_hidden_layers
    grown = growth.deepen(small, depth * 2 + 1)
    assert grown.config.num_hidden_layers == len(grown.model.layers) == depth * 2 + 1
    for i, layer in enumerate(grown.model.layers):
        for ours, theirs in zip(layer.parameters(), small.model.layers[i % depth].parameters(), strict=True):
            assert torch.equal(ours, theirs)
            assert ours.data_ptr() != theirs.data_ptr()
    assert torch.equal(grown.lm_head.weight, small.lm_head.weight)


@given(st.integers(1, 500), st.sampled_from([32, 96, 512, 2048]), st.floats(0.01, 1))
def test_rows_only_ever_grow_and_are_whole_from_half_way(steps, row_tokens, share):
    parts = [growth.row_parts(step, steps, row_tokens, share) for step in range(steps)]
    assert parts == sorted(parts, reverse=True)
    assert all(row_tokens % p == 0 for p in parts)
    assert all(p == 1 for p in parts[growth.grown_at(steps) :])
    assert parts[0] * share <= 1


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_split_rows_hold_the_same_tokens_and_documents(rows, parts):
    dataset = PackedRows(rows)
    batch = collate([dataset[i] for i in range(4)])
    cut = split_rows(batch, parts)
    count, length = batch["input_ids"].shape
    assert cut["input_ids"].shape == (count * parts, length // parts)
    assert torch.equal(cut["input_ids"].flatten(), batch["input_ids"].flatten())
    same = (cut["labels"].flatten() == batch["labels"].flatten()) | (cut["labels"].flatten() == -100)
    assert same.all()
    assert int((cut["cu_seqlens"].diff() > 0).sum()) <= cut["documents"] <= batch["documents"] + count * (parts - 1)
    for row in range(count * parts):
        ends = cut["cu_seqlens"][row].tolist()
        assert ends[0] == 0 or min(ends) == 0
        assert max(ends) == length // parts
        positions = cut["position_ids"][row]
        starts = {e for e in ends if e < length // parts} | {0}
        assert {i for i, p in enumerate(positions.tolist()) if p == 0} == starts
        assert all(b in (a + 1, 0) for a, b in zip(positions[:-1].tolist(), positions[1:].tolist(), strict=True))
