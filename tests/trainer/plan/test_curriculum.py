import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.corpus.tokens.packing import pack
from stages.trainer.plan.curriculum import difficulty, easy_first


def test_difficulty_is_tokens_per_byte_without_padding():
    vocabulary = {"a": 0, "the": 1, "hello": 2, "<|pad|>": 3}
    rows = pack(np.array([0, 0, 1, 2, 2, 2, 2], np.uint16), np.array([3, 4]), 4, pad=3, seed=0)
    found = dict(zip(rows.filled.tolist(), difficulty(rows, vocabulary).tolist(), strict=True))
    assert found == {3: 3 / 5, 4: 4 / 20}


@given(st.lists(st.floats(0.1, 1), min_size=1, max_size=40), st.integers(0, 130))
def test_every_pass_goes_from_easy_to_hard_without_repeats(values, count):
    values = np.array(values)
    order = easy_first(values, count)
    passes = [order[k : k + len(values)] for k in range(0, count, len(values))]
    assert len(order) == count
    for one in passes:
        assert len(set(one.tolist())) == len(one) and (np.diff(values[one]) >= 0).all()
    assert all(len(one) == len(values) for one in passes[:-1])
    if passes and len(passes[-1]) > 1:
        skipped = np.diff(np.argsort(np.argsort(values, kind="stable"))[passes[-1]])
        assert skipped.max() - skipped.min() <= 1, "at even distances"
