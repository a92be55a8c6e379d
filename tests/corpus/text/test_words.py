import os
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numba.core.caching import _CacheLocator

from stages.corpus.text import kernels
from stages.corpus.text.words import fold_table, hash_ngrams, hash_words, in_threads, texts

# Latin, Greek and Cyrillic letters, digits, punctuation of one to four bytes: here a word is what \w+ finds.
ALPHABET = st.text(st.sampled_from("aAbBzZ0_9 \n\t.,-'\u2019“—éÉßñαΩжЖ…😀«"), max_size=60)


def words_of(text: str) -> np.ndarray:
    column = texts(pa.array([text], pa.large_string()))
    out = np.zeros(len(column.data) + 1, np.uint64)
    return out[: hash_words(column.data, 0, len(column.data), fold_table(), out)]


@settings(max_examples=150)
@given(st.lists(ALPHABET, min_size=1, max_size=3))
@example(["don't don\u2019t DON'T"])
def test_two_words_have_one_hash_exactly_when_they_are_one_word(parts):
    text = " ".join(parts).replace("😀", "")
    expected = re.findall(r"\w+", text.lower())
    hashes = words_of(text).tolist()
    assert len(hashes) == len(expected)
    assert len(set(zip(hashes, expected, strict=True))) == len(set(hashes)) == len(set(expected))


def test_scripts_without_spaces_give_a_word_a_character():
    assert len(words_of("日本語のテキスト")) == 8
    assert words_of("日 本").tolist() == words_of("日本").tolist()
    assert len(words_of("हिन्दी में")) == 2  # vowel signs belong to the word


def test_ngrams_are_equal_exactly_when_their_words_are():
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 13):
        words = rng.integers(1, 4, 40).astype(np.uint64)
        expected = [tuple(words[k : k + n].tolist()) for k in range(40 - n + 1)]
        hashes = words.copy()
        assert hash_ngrams(hashes, 40, n) == len(expected)
        found = hashes[: len(expected)].tolist()
        assert len(set(zip(found, expected, strict=True))) == len(set(found)) == len(set(expected))


def test_fewer_words_than_n_are_one_ngram():
    words = np.array([5, 6, 7], np.uint64)
    assert hash_ngrams(words.copy(), 3, 5) == 1 and hash_ngrams(words.copy(), 0, 5) == 0


def test_a_slice_of_a_column_gives_its_own_documents():
    column = texts(pa.chunked_array([["aa", "b"], ["", "cc", "d"]]).slice(1, 3))
    assert [bytes(column.data[a:b]) for a, b in pairwise(column.offsets)] == [b"b", b"", b"cc"]


@pytest.mark.parametrize("block", [1, 3, 1000])
@pytest.mark.parametrize("strings", [[], [""], ["", "ab", "", "c", "defg", ""], ["a" * 50]])
def test_blocks_cover_every_document_once(strings, block, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(3))
    column = texts(pa.array(strings, pa.large_string()))
    spans = in_threads(lambda first, last: (first, last), column, block)
    assert [k for first, last in spans for k in range(first, last)] == list(range(len(strings)))


def test_a_changed_kernel_of_any_room_gets_a_new_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "_ROOM", tmp_path)
    (tmp_path / "filtering").mkdir()
    (tmp_path / "filtering/rule.py").write_text("import numba\n@kernel\ndef f(): return 1\n")
    before = kernels._cache_folder()
    (tmp_path / "filtering/rule.py").write_text("import numba\n@kernel\ndef f(): return 2\n")
    assert kernels._cache_folder() != before


def test_a_copy_of_the_repository_finds_the_kernels_compiled(tmp_path):
    """numba looks for machine code in a folder named by a kernel's file."""
    place = _CacheLocator.get_suitable_cache_subpath
    here = Path(kernels.__file__)
    assert place(str(here)) == here.parent.name != place(str(tmp_path / here.name))
