import os

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.corpus.tokens import append, begin
from stages.corpus.tokens import lengths as lengths_in


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=4), st.data())
def test_wherever_it_was_killed_whole_documents_are_left_and_the_rest_can_follow(tmp_path_factory, parts, data):
    """``parts``: the documents' lengths, written part by part; the last was being written."""
    folder, lengths = tmp_path_factory.mktemp("tokens"), np.concatenate(parts)
    tokens = np.arange(lengths.sum()).astype(np.uint16)
    ends = np.append(0, np.cumsum([sum(part) for part in parts]))
    assert begin(folder, np.uint16) == 0
    for part, first, last in zip(parts, ends[:-1], ends[1:], strict=True):
        append(folder, tokens[first:last], np.array(part))
    before = 8 * (len(lengths) - len(parts[-1]))
    cut = data.draw(st.integers(before, 8 * len(lengths)))
    os.truncate(folder / "lengths.bin", cut)
    if cut == before:  # tokens go first
        os.truncate(folder / "tokens.bin", data.draw(st.integers(2 * ends[-2], 2 * ends[-1])))
    there = begin(folder, np.uint16)
    assert there == cut // 8
    append(folder, tokens[lengths[:there].sum() :], lengths[there:])
    assert np.array_equal(np.fromfile(folder / "tokens.bin", np.uint16), tokens)
    assert np.array_equal(lengths_in(folder), lengths)
