"""Every prompt gets another's answers; nothing is lost, and no row grows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.corpus.chats.encoding import Pair, pack_pairs
from stages.corpus.chats.mismatched import mismatched

HALF = 40


class Pads:
    """What packing asks of a tokenizer."""

    pad_token_id = 0

    def __len__(self):
        return 2**16 + 1


@st.composite
def packed(draw):
    """Rows of 80 in which a token says which side of which pair it belongs to, and whether it is prompt or answer."""
    pairs = []
    for i in range(draw(st.integers(2, 12))):
        prompt = draw(st.integers(1, HALF - 1))
        sides = []
        for side in (1, 2):
            length = draw(st.integers(1, HALF - prompt))
            answer = [1000 * (i + 1) + 100 * side + at for at in range(length)]
            sides += [[1000 * (i + 1) + at for at in range(prompt)] + answer, np.arange(prompt, prompt + length)]
        pairs.append(Pair(*sides, cut=False))
    return pack_pairs(Pads(), pairs, 2 * HALF, seed=draw(st.integers(0, 9)))


def segments(rows, r):
    """[(prompt, answer)] of row ``r``, as tuples of tokens; labels are checked on the way."""
    found = []
    for a, b in zip(rows.cu_seqlens[r], rows.cu_seqlens[r][1 : 2 * rows.pairs[r] + 1], strict=False):
        tokens, labels = rows.tokens[r, a:b], rows.labels[r, a:b]
        spoken = np.flatnonzero(labels != -100)
        assert (labels[spoken] == tokens[spoken]).all() and (np.diff(spoken) == 1).all() and spoken[-1] == b - a - 1
        found.append((tuple(tokens[: spoken[0]].tolist()), tuple(tokens[spoken].tolist())))
    return found


@given(packed())
def test_answers_go_once_round_the_row(rows):
    other = mismatched(rows)
    assert (other.pairs == rows.pairs).all()
    for r, count in enumerate(rows.pairs):
        before, after = segments(rows, r), segments(other, r)
        assert [prompt for prompt, _ in after] == [prompt for prompt, _ in before]
        if count > 1:
            assert [answer for _, answer in after] == [answer for _, answer in before[2:] + before[:2]]
            assert other.filled[r] == rows.filled[r]
            assert sorted(other.tokens[r].tolist()) == sorted(rows.tokens[r].tolist())


@given(packed())
def test_a_pair_alone_gets_as_much_as_fits_of_the_next_row_s_answers(rows):
    other = mismatched(rows)
    for r in np.flatnonzero(rows.pairs == 1):
        wanted = segments(rows, (r + 1) % len(rows.pairs))[:2]
        for (prompt, answer), (_, whole) in zip(segments(other, r), wanted, strict=True):
            assert 1 <= len(answer) == min(len(whole), HALF - len(prompt))
            assert answer == whole[: len(answer)]


@given(packed())
def test_what_is_behind_the_last_pair_is_a_segment_of_its_own_that_nobody_learns(rows):
    other = mismatched(rows)
    for r, count in enumerate(other.pairs):
        bounds = other.cu_seqlens[r]
        assert bounds[0] == 0 and bounds[2 * count] == other.filled[r] and bounds[-1] == 2 * HALF
        assert (bounds[2 * count + 1 :] == 2 * HALF).all() and (np.diff(bounds) >= 0).all()
        assert (other.labels[r, other.filled[r] :] == -100).all()


@given(packed(), st.integers(2, 4), st.integers(0, 9))
def test_copies_of_a_pair_do_not_get_each_others_answers(rows, copies, seed):
    pairs = []
    for r in range(len(rows.pairs)):
        sides = [(list(p) + list(a), np.arange(len(p), len(p) + len(a))) for p, a in segments(rows, r)]
        pairs += [Pair(*sides[k], *sides[k + 1], cut=False) for k in range(0, len(sides), 2) for _ in range(copies)]
    rows = pack_pairs(Pads(), pairs, 4 * HALF, seed=seed)
    other = mismatched(rows)
    for r in range(len(rows.pairs)):
        for (prompt, answer), (_, own) in zip(segments(other, r), segments(rows, r), strict=True):
            assert answer[0] // 1000 != prompt[0] // 1000 and answer[0] % 1000 // 100 == own[0] % 1000 // 100
        assert other.filled[r] <= rows.filled[r] or rows.pairs[r] == 1


def test_a_single_prompt_has_no_other_answers():
    pair = Pair([5, 6], np.array([1]), [5, 7], np.array([1]), cut=False)
    for count in (1, 3):
        with pytest.raises(ValueError, match="all pairs have one prompt"):
            mismatched(pack_pairs(Pads(), [pair] * count, 16, seed=0))
