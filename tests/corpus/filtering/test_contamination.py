import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.corpus.filtering.contamination import index, ngram_overlap, passages
from stages.corpus.text.words import texts
from tests.corpus.helpers import table


def grams(text: str, n: int) -> set:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[k : k + n]) for k in range(len(words) - n + 1)}


few_words = st.lists(st.sampled_from("abc"), max_size=12).map(" ".join)


@settings(max_examples=150)
@given(st.lists(few_words, min_size=1, max_size=6), st.lists(st.lists(few_words, max_size=3), min_size=1, max_size=5))
def test_the_overlap_coefficient_agrees_with_sets(documents, items):
    n = 3
    found = ngram_overlap(texts(table(documents)["text"]), index(items, n))
    of_items = [set().union(*(grams(passage, n) for passage in item)) for item in items]
    expected = np.array(
        [[len(grams(d, n) & i) / max(1, min(len(grams(d, n)), len(i))) for i in of_items] for d in documents]
    )
    assert found.documents == pytest.approx(expected.max(axis=1))
    assert found.items == pytest.approx(expected.max(axis=0))


def test_a_question_within_a_long_document_is_found_and_a_phrase_is_not():
    rng = np.random.default_rng(3)
    word = lambda count: " ".join(f"w{k}" for k in rng.integers(0, 10**6, count))  # noqa: E731
    question, passage = word(40), word(2000)
    phrase = " ".join(passage.split()[:20])
    documents = [f"{word(1000)} {question.upper()} {word(1000)}", f"{word(1000)} {phrase} {word(1000)}", passage]
    found = ngram_overlap(texts(table(documents)["text"]), index([[question], [passage]], 13))
    assert found.documents[0] > 0.99 and 0 < found.documents[1] < 0.01 and found.documents[2] == 1
    assert found.items[0] > 0.99 and found.items[1] == 1


def test_an_item_too_short_to_find_is_counted_as_such():
    assert index([["only a few words"], ["one two three four five"]], 5).sizes.tolist() == [0, 1]


def test_all_passages_of_a_record_but_no_labels():
    record = {
        "id": "no",
        "task": "no",
        "query": "asked",
        "choices": ["one", "two"],
        "gold": 1,
        "fewshot": [{"source": "no", "target": "deep"}],
    }
    assert sorted(passages(record)) == ["asked", "deep", "one", "two"]
