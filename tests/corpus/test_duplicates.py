import os
import re
from functools import partial

import numpy as np
import orjson
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.contract.params import Dedup, load_params
from stages.corpus import duplicates
from stages.corpus.documents import read_documents
from stages.corpus.duplicates import find_duplicates, sign
from stages.corpus.words import in_threads, texts
from tests.corpus.helpers import table

PARAMS = Dedup(ngram=2, permutations=60, bands=20, threshold=0.5)


def shingles(text: str, n: int) -> set:
    words = re.findall(r"\w+", text.lower())
    n = min(n, len(words))
    return {tuple(words[k : k + n]) for k in range(len(words) - n + 1)} if n else set()


def jaccard(a: str, b: str, n: int) -> float:
    a, b = shingles(a, n), shingles(b, n)
    return len(a & b) / len(a | b)


few_words = st.lists(st.sampled_from(["a", "b", "c", "d", "E", "f,", "--"]), max_size=9).map(" ".join)


@settings(max_examples=150)
@given(st.lists(few_words, min_size=1, max_size=25), st.randoms(use_true_random=False))
def test_every_cluster_keeps_exactly_one_whatever_the_order(strings, random):
    documents = table(strings)
    found = find_duplicates(documents, PARAMS)
    kept = set(documents.filter(found.kept)["id"].to_pylist())
    removed = found.removed.to_pylist()
    text = dict(zip(documents["id"].to_pylist(), strings, strict=True))

    assert kept | {row["id"] for row in removed} == set(text)
    assert len(kept) + len(removed) == len(text)
    assert all(row["kept_id"] in kept and row["kept_id"] < row["id"] for row in removed)
    assert len({text[k] for k in kept}) == len(kept), "an exact copy survived"
    assert all((row["kind"] == "exact") == (text[row["id"]] == text[row["kept_id"]]) for row in removed)
    assert len({row["cluster"] for row in removed}) == len({row["kept_id"] for row in removed}) == len(found.sizes)
    assert found.sizes.sum() == len(removed) + len(found.sizes)

    order = list(range(len(strings)))
    random.shuffle(order)
    again = find_duplicates(documents.take(order), PARAMS)
    assert again.removed.equals(found.removed)
    assert again.kept.tolist() == found.kept[order].tolist()


def test_threads_and_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    documents = table(" ".join(rng.choice(["a", "b", "c", "d"], rng.integers(0, 40))) for _ in range(300))
    one = find_duplicates(documents, PARAMS)
    for cores, block in ((1, 50), (7, 1), (3, 10**6)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: range(n))
        monkeypatch.setattr(duplicates, "in_threads", partial(in_threads, block_bytes=block))
        other = find_duplicates(documents, PARAMS)
        assert other.removed.equals(one.removed) and other.kept.tolist() == one.kept.tolist()


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
    found = find_duplicates(table(["Hello, world!", "hello world", "world hello", "?!", "...", "?!", ""]), PARAMS)
    pairs = {(row["id"], row["kept_id"], row["kind"]) for row in found.removed.to_pylist()}
    assert pairs == {("d00001", "d00000", "near"), ("d00005", "d00003", "exact")}


def test_a_copy_of_a_removed_document_points_to_the_survivor():
    long = " ".join(str(k) for k in range(60))
    found = find_duplicates(table([long, long + " tail", long + " tail"]), PARAMS)
    rows = [(row["id"], row["kept_id"], row["kind"]) for row in found.removed.to_pylist()]
    assert rows == [("d00001", "d00000", "near"), ("d00002", "d00000", "near")]
    assert found.sizes.tolist() == [3]


@pytest.fixture(scope="module")
def shipped():
    params = load_params()
    documents = read_documents(params.data.pretrain).table
    found = find_duplicates(documents, params.dedup)
    kept_id = {name: name for name in documents["id"].to_pylist()}
    kept_id |= dict(zip(found.removed["id"].to_pylist(), found.removed["kept_id"].to_pylist(), strict=True))
    with open("data/known_duplicates.jsonl", "rb") as f:
        return documents, found, kept_id, [orjson.loads(line) for line in f]


def test_the_known_duplicates_are_found(shipped):
    _, _, kept_id, known = shipped
    caught = [kept_id[pair["id_a"]] == kept_id[pair["id_b"]] for pair in known]
    exact = [hit for hit, pair in zip(caught, known, strict=True) if pair["kind"] == "exact"]
    near = [hit for hit, pair in zip(caught, known, strict=True) if pair["jaccard_word5"] >= 0.8]
    assert len(exact) == 28 and all(exact)
    assert len(near) == 85 and np.mean(near) >= 0.95


def test_nothing_unlike_is_removed_from_the_shipped_corpus(shipped):
    documents, found, _, _ = shipped
    text = dict(zip(documents["id"].to_pylist(), documents["text"].to_pylist(), strict=True))
    similarity = [jaccard(text[row["id"]], text[row["kept_id"]], 5) for row in found.removed.to_pylist()]
    assert min(similarity) > 0.6
    assert pc.count_distinct(documents["text"]).as_py() >= found.kept.sum()
