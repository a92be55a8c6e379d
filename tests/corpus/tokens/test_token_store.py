import os

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.corpus.tokens.token_store import append, begin_store, document_lengths


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=4), st.data())
def test_after_a_kill_or_damage_what_is_whole_is_left(tmp_path_factory, parts, data):
    """``parts``: the documents' lengths, written part by part; the last was being written."""
    folder, lengths = tmp_path_factory.mktemp("tokens"), np.concatenate(parts)
    tokens = np.arange(lengths.sum()).astype(np.uint16)
    ends = np.append(0, np.cumsum([sum(part) for part in parts]))
    assert begin_store(folder, np.uint16) == 0
    for part, first, last in zip(parts, ends[:-1], ends[1:], strict=True):
        append(folder, tokens[first:last], np.array(part))
    name, step = data.draw(st.sampled_from([("tokens.bin", 2), ("lengths.bin", 8), ("sums.bin", 24)]))
    size = (folder / name).stat().st_size
    whole = len(parts) - 1
    if data.draw(st.booleans()):
        last = {"tokens.bin": sum(parts[-1]), "lengths.bin": len(parts[-1]), "sums.bin": 1}[name]
        os.truncate(folder / name, data.draw(st.integers(size - last * step, size - 1)))
    else:  # a bit of it is flipped
        content = bytearray((folder / name).read_bytes())
        at = data.draw(st.integers(0, 8 * size - 1))
        content[at // 8] ^= 1 << at % 8
        (folder / name).write_bytes(content)
        sizes = {"tokens.bin": [sum(part) for part in parts], "lengths.bin": [len(part) for part in parts]}
        whole = int(np.searchsorted(np.cumsum(sizes.get(name, [1] * len(parts))) * step, at // 8, side="right"))
    there = begin_store(folder, np.uint16)
    assert there == sum(map(len, parts[:whole]))
    append(folder, tokens[lengths[:there].sum() :], lengths[there:])
    assert np.array_equal(np.fromfile(folder / "tokens.bin", np.uint16), tokens)
    assert np.array_equal(document_lengths(folder), lengths)
