import re
from types import SimpleNamespace

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.contract.params import Dedup, load_params
from stages.corpus.dedup import duplicates
from stages.corpus.dedup.duplicates import find_duplicates
from stages.corpus.dedup.shards import text_hashes
from stages.corpus.dedup.signatures import band_keys, sign
from stages.corpus.reading.documents import read_documents
from stages.corpus.text.words import texts
from tests.corpus.helpers import table

PARAMS = Dedup(ngram=2, permutations=60, bands=20, threshold=0.5, paragraphs=0, against="none", memory_gib=1)


def shingles(text: str, n: int) -> set:
    words = re.findall(r"\w+", text.lower())
    n = min(n, len(words))
    return {tuple(words[k : k + n]) for k in range(len(words) - n + 1)} if n else set()


def jaccard(a: str, b: str, n: int) -> float:
    a, b = shingles(a, n), shingles(b, n)
    return len(a & b) / len(a | b)


def survivors(strings: list[str], params: Dedup = PARAMS, at_once: int = 7) -> list[int]:
    """The survivor of each document."""
    return find_duplicates(signed(strings, params), params, at_once)[0].tolist()


def signed(strings: list[str], params: Dedup = PARAMS) -> SimpleNamespace:
    """As much of a Collection as duplicates are found by."""
    documents = texts(table(strings)["text"])
    signatures, wordless = sign(documents, params.ngram, params.permutations)
    keys = band_keys(signatures, params.bands).__getitem__
    return SimpleNamespace(
        hashes=text_hashes(documents), wordless=wordless, keys=keys, signatures=signatures.__getitem__
    )


def defined(strings: list[str], params: Dedup = PARAMS) -> list[int]:
    """The same by definition: every two documents are compared, and clusters are what hangs together."""
    signatures, wordless = sign(texts(table(strings)["text"]), params.ngram, params.permutations)
    rows, cluster = params.permutations // params.bands, list(range(len(strings)))
    for k in range(len(strings)):
        for j in range(k):
            agree = signatures[j] == signatures[k]
            near = agree.reshape(-1, rows).all(axis=1).any() and agree.mean() >= params.threshold
            if strings[j] == strings[k] or (near and not wordless[j] and not wordless[k]):
                a, b = sorted((cluster[j], cluster[k]))
                cluster = [a if c == b else c for c in cluster]
    return cluster


few_words = st.lists(st.sampled_from(["a", "b", "c", "d", "E", "f,", "--"]), max_size=9).map(" ".join)


@settings(max_examples=150)
@given(st.lists(few_words, min_size=1, max_size=25), st.integers(1, 40))
def test_clusters_are_what_hangs_together_and_the_first_survives(strings, at_once):
    assert survivors(strings, at_once=at_once) == defined(strings)


def test_documents_from_one_template_cost_time_linear_in_their_number(monkeypatch):
    """Each is like the first, so comparing with firsts finds the same as comparing all."""
    base = [str(k) for k in range(40)]
    strings = [" ".join([*base, f"tail{k}"]) for k in range(120)]
    expected = defined(strings)
    assert len(set(expected)) == 1
    compared = []
    monkeypatch.setattr(duplicates, "LARGE", 16)
    monkeypatch.setattr(duplicates, "_link", lambda *_: compared.append("all pairs"))
    assert survivors(strings, at_once=10) == expected and not compared


@settings(max_examples=60)
@given(st.lists(few_words, min_size=1, max_size=40), st.integers(1, 12), st.randoms(use_true_random=False))
def test_bands_looked_at_one_by_one_link_the_same(strings, at_once, random):
    """Also where a key is shared by more documents than are all compared, with firsts that run out."""
    documents = signed(strings)
    exact, apart = duplicates.exact_duplicates(documents.hashes), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "LARGE", 3)
        for band in random.sample(range(PARAMS.bands), PARAMS.bands // 2):
            apart[band] = np.arange(len(exact))
            duplicates.link_band(documents, band, exact, PARAMS, at_once, apart[band])
        arguments = (documents, PARAMS, at_once)
        whole, again = find_duplicates(*arguments), find_duplicates(*arguments, apart.get)
    assert (whole[0] == again[0]).all() and (whole[1] == again[1]).all()


def mixed(x: int) -> int:
    """splitmix64's finalizer."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def hashed(values) -> int:
    state = 0
    for value in values:
        state = (state * 0x9E3779B97F4A7C15 + 1) % 2**64 ^ value
    return mixed(state)


@pytest.mark.parametrize("count", [0, 1, 2, 31, 32, 33, 34, 257, 258, 1024, 1025, 1026, 1300])
def test_signatures_are_those_that_a_kept_corpus_has(count):
    """Whatever the kernels do at a time: an index that was written once is compared with for years."""
    text = [f"word{k * k}É" for k in range(count)]
    words = [hashed(map(ord, word.lower())) for word in text]
    n = min(PARAMS.ngram, count)
    shingled = [hashed(words[k : k + n]) for k in range(count - n + 1)] if n else []
    raw = np.random.PCG64(20210714).random_raw(2 * PARAMS.permutations).tolist()
    factors, shifts = [a | 1 for a in raw[: PARAMS.permutations]], raw[PARAMS.permutations :]
    expected = [
        min([((a * x + b) % 2**64) >> 32 for x in shingled], default=2**32 - 1)
        for a, b in zip(factors, shifts, strict=True)
    ]
    signatures, wordless = sign(texts(table([" ".join(text)])["text"]), PARAMS.ngram, PARAMS.permutations)
    assert signatures[0].tolist() == expected and wordless[0] == (count == 0)


def test_the_estimate_agrees_with_the_exact_similarity():
    rng = np.random.default_rng(2)
    base = rng.choice(np.arange(5000), 400).astype(str)
    strings = [" ".join(base)]
    for share in np.linspace(0.005, 0.4, 60):
        copy = base.copy()
        copy[rng.random(400) < share] = "new"
        strings.append(" ".join(copy))
    signatures, empty = sign(texts(table(strings)["text"]), 5, 256)
    estimate = (signatures[1:] == signatures[0]).mean(axis=1)
    exact = np.array([jaccard(strings[0], other, 5) for other in strings[1:]])
    assert not empty.any() and exact.max() > 0.9 and exact.min() < 0.2
    error = estimate - exact
    # The standard error of 256 hashes is at most 0.031.
    assert np.abs(error).max() < 0.125 and abs(error.mean()) < 0.015


def test_short_and_wordless_documents():
    strings = ["Hello, world!", "hello world", "world hello", "?!", "...", "?!", ""]
    assert survivors(strings) == [0, 0, 2, 3, 4, 3, 6]


def test_a_copy_of_a_removed_document_points_to_the_survivor():
    long = " ".join(str(k) for k in range(60))
    assert survivors([long, long + " tail", long + " tail"]) == [0, 0, 0]


@pytest.fixture(scope="module")
def shipped():
    params = load_params()
    documents = read_documents(params.data.pretrain).table
    ids, strings = documents["id"].to_pylist(), documents["text"].to_pylist()
    found = survivors(strings, params.dedup, 10**6)
    with open("data/known_duplicates.jsonl", "rb") as f:
        return strings, found, {ids[k]: ids[found[k]] for k in range(len(ids))}, [orjson.loads(line) for line in f]


def test_the_known_duplicates_are_found(shipped):
    _, _, kept_id, known = shipped
    caught = [kept_id[pair["id_a"]] == kept_id[pair["id_b"]] for pair in known]
    exact = [hit for hit, pair in zip(caught, known, strict=True) if pair["kind"] == "exact"]
    near = [hit for hit, pair in zip(caught, known, strict=True) if pair["jaccard_word5"] >= 0.8]
    assert len(exact) == 28 and all(exact)
    assert len(near) == 85 and np.mean(near) >= 0.95


def test_nothing_unlike_is_removed_from_the_shipped_corpus(shipped):
    strings, found, _, _ = shipped
    similarity = [jaccard(strings[k], strings[first], 5) for k, first in enumerate(found) if first != k]
    assert min(similarity) > 0.6
    assert len(set(strings)) >= len(set(found))
