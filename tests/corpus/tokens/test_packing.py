from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.corpus.tokens.packed_rows import IGNORED, labels, load_rows, position_ids, save_rows
from stages.corpus.tokens.packing import arrange, cut, framed, pack, plan_rows, save_packed

PAD = 60_000


def stream(lengths) -> np.ndarray:
    """Tokens that tell their document and place apart."""
    return np.arange(sum(lengths)).astype(np.uint16)


def best_fit_decreasing(pieces, capacity):
    """Quadratic reference: each piece to the row with the least sufficient space, the last of several to be left
    with that space."""
    rows, space, touched = [], [], []
    for clock, size in enumerate(sorted(pieces, reverse=True)):
        fitting = [r for r in range(len(rows)) if space[r] >= size]
        if fitting:
            r = min(fitting, key=lambda r: (space[r], -touched[r]))
        else:
            r = len(rows)
            rows.append([])
            space.append(capacity)
            touched.append(0)
        rows[r].append(size)
        space[r] -= size
        touched[r] = clock
    return rows


some_lengths = st.lists(st.integers(1, 200), min_size=1, max_size=60)


@given(st.lists(st.integers(0, 20), max_size=20))
def test_every_document_stands_between_two_marks(lengths):
    tokens, framed_lengths = framed(stream(lengths), np.array(lengths, np.int64), PAD, PAD + 1, np.uint16)
    parts = np.split(tokens, np.cumsum(framed_lengths)[:-1]) if lengths else []
    documents = np.split(stream(lengths), np.cumsum(lengths)[:-1]) if lengths else []
    for part, document in zip(parts, documents, strict=True):
        assert part.tolist() == [PAD, *document, PAD + 1]


@settings(max_examples=200)
@given(some_lengths, st.integers(16, 80), st.integers(0, 5))
@example([16], 16, 0)
@example([17], 16, 0)
@example([1] * 40, 16, 0)
def test_no_token_is_lost_and_no_row_mixes_documents_within_a_segment(lengths, width, seed):
    tokens = stream(lengths)
    rows = pack(tokens, np.array(lengths), width, PAD, seed)
    assert rows.tokens.shape == (len(rows.filled), width) and rows.tokens.dtype == tokens.dtype
    assert rows.cu_seqlens.dtype == rows.filled.dtype == np.int32
    assert rows.filled.sum() == sum(lengths)
    ends = np.cumsum(lengths)
    seen = []
    for row, bounds, filled in zip(*rows, strict=True):
        assert bounds[0] == 0 and bounds[-1] == width and (np.diff(bounds) >= 0).all()
        assert filled in bounds and (row[filled:] == PAD).all()
        real = [(a, b) for a, b in pairwise(bounds) if a < b and a < filled]
        for a, b in real:
            segment = row[a:b].astype(int)
            assert (np.diff(segment) == 1).all()
            assert np.searchsorted(ends, segment[0], "right") == np.searchsorted(ends, segment[-1], "right")
        seen += row[:filled].tolist()
    assert sorted(seen) == tokens.tolist()


@settings(max_examples=200)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=80), st.sampled_from([64, 65, 127, 128, 5000]))
def test_the_plan_is_best_fit_decreasing(pieces, capacity):
    row, count = plan_rows(np.array(pieces), capacity)
    ours = [sorted((p for p, r in zip(pieces, row, strict=True) if r == k), reverse=True) for k in range(count)]
    assert ours == best_fit_decreasing(pieces, capacity)


def test_wide_rows_use_both_levels_of_the_index():
    rng = np.random.default_rng(0)
    pieces = rng.integers(1, 20_000, 400)
    row, count = plan_rows(pieces, 20_000)
    assert count == len(best_fit_decreasing(pieces.tolist(), 20_000))
    assert np.bincount(row, weights=pieces).max() <= 20_000


@given(some_lengths, st.integers(16, 80))
def test_only_documents_longer_than_a_row_are_cut(lengths, width):
    pieces = cut(np.array(lengths), width)
    assert pieces.sum() == sum(lengths) and pieces.max() <= width and pieces.min() > 0
    assert len(pieces) == sum(-(-n // width) for n in lengths)


def test_it_fills_rows_as_well_as_trl():
    from datasets import Dataset
    from trl import pack_dataset

    rng = np.random.default_rng(4)
    lengths = np.minimum(rng.lognormal(4, 1, 900).astype(int) + 1, 2000)
    theirs = pack_dataset(
        Dataset.from_dict({"input_ids": [[1] * int(n) for n in lengths]}), seq_length=256, strategy="bfd_split"
    )
    ours = pack(stream(lengths), lengths, 256, PAD, 0)
    assert sum(map(len, theirs["input_ids"])) == ours.filled.sum() == lengths.sum()
    assert len(ours.tokens) <= len(theirs)


def test_the_seed_orders_the_rows_and_nothing_else():
    lengths = np.arange(1, 60)
    one, same, other = (pack(stream(lengths), lengths, 64, PAD, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one.tokens, other.tokens)
    assert sorted(map(tuple, one.tokens)) == sorted(map(tuple, other.tokens))


def test_rows_come_back_as_memory_maps(tmp_path):
    rows = pack(stream([5, 9, 30]), np.array([5, 9, 30]), 16, PAD, 0)
    save_rows(rows, tmp_path / "train")
    back = load_rows(tmp_path / "train")
    for ours, theirs in zip(rows, back, strict=True):
        assert isinstance(theirs, np.memmap) and theirs.dtype == ours.dtype and np.array_equal(ours, theirs)
    with pytest.raises(ValueError, match="read-only"):
        back.tokens[0, 0] = 1


@settings(max_examples=50)
@given(some_lengths, st.integers(16, 80), st.integers(1, 2000))
def test_rows_written_in_slices_are_the_same_files(tmp_path_factory, lengths, width, slice_bytes):
    folder, lengths = tmp_path_factory.mktemp("rows"), np.array(lengths)
    stream(lengths).tofile(folder / "tokens.bin")
    save_rows(pack(stream(lengths), lengths, width, PAD, 3), folder / "whole")
    found = arrange(lengths, width, 3)
    save_packed(folder / "sliced", folder / "tokens.bin", np.uint16, found, width, PAD, slice_bytes)
    for file in (folder / "whole").iterdir():
        assert file.read_bytes() == (folder / "sliced" / file.name).read_bytes()


def test_a_file_of_tokens_that_is_too_short_is_no_row_of_something_else(tmp_path):
    lengths = np.array([5, 9, 30])
    stream([5, 9, 29]).tofile(tmp_path / "tokens.bin")
    with pytest.raises(OSError, match="end"):
        save_packed(tmp_path / "rows", tmp_path / "tokens.bin", np.uint16, arrange(lengths, 16, 0), 16, PAD)


def test_positions_restart_and_the_loss_skips_boundaries_and_padding():
    bounds = np.array([0, 3, 7, 10, 10])  # two documents and three places of padding
    assert position_ids(bounds, 10).tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1, 2]
    row = np.arange(10, 20).astype(np.uint16)
    row[7:] = PAD
    skip = IGNORED
    assert labels(row, bounds, 7).tolist() == [skip, 11, 12, skip, 14, 15, 16, skip, skip, skip]
    full = np.array([0, 10])
    assert labels(row, full, 10).tolist() == [skip, *row[1:].tolist()]
