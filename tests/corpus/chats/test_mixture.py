import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contract import UserError
from stages.contract.params import Mixture
from stages.corpus.chats.conversations import read_conversations, read_preferences
from stages.corpus.chats.mixture import weighted
from stages.corpus.filtering.domains import copies, write_sampled
from tests.corpus.helpers import table

WEIGHTS = st.floats(0, 5, allow_nan=False)
RECORDS = st.lists(st.integers(0, 10**6).map(lambda n: str(n).encode()), max_size=60)


def folder(tmp_path, weights, **files):
    """A source of one file for each keyword, of so many training conversations each, and a held-out one."""
    for name, count in files.items():
        talks = [{"messages": turns(f"{name} {i}"), "split": "train"} for i in range(count)]
        talks.append({"messages": turns(f"{name} held out"), "split": "test"})
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    return Mixture(path=str(tmp_path), files="**/*", weights=weights)


def turns(question):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": "yes"}]


def asked(examples):
    return Counter(example["messages"][0]["content"] for example in examples)


@given(RECORDS, WEIGHTS)
def test_what_is_taken_is_the_weight_times_the_records_and_spread_evenly(records, weight):
    often = copies(records, weight)
    assert len(often) == len(records) and abs(sum(often) - weight * len(records)) <= 0.5
    assert not often or max(often) - min(often) <= 1
    if weight == int(weight):
        assert set(often) <= {int(weight)}


@given(RECORDS, WEIGHTS, st.randoms())
def test_neither_order_nor_chance_decides_what_is_taken(records, weight, random):
    shuffled = random.sample(records, len(records))
    taken = [Counter(r for r, n in zip(rs, copies(rs, weight), strict=True) for _ in range(n))
             for rs in (records, shuffled)]  # fmt: skip
    assert taken[0] == taken[1]


@given(RECORDS, WEIGHTS, WEIGHTS)
def test_a_larger_weight_takes_what_a_smaller_one_took(records, one, other):
    few, many = (copies(records, weight) for weight in sorted((one, other)))
    assert all(a <= b for a, b in zip(few, many, strict=True))


def test_every_file_is_taken_by_its_own_weight_and_held_out_records_stay(tmp_path):
    source = folder(tmp_path, {"half*": 0.5, "t*.jsonl": 2, "none.jsonl": 0}, half=7, twice=3, none=5, once=4)
    plain = read_conversations(source)
    found = weighted(plain, source)
    assert found.mixture == {
        "half*": {"weight": 0.5, "records": 7, "taken": 4},
        "none.jsonl": {"weight": 0.0, "records": 5, "taken": 0},
        "t*.jsonl": {"weight": 2.0, "records": 3, "taken": 6},
    }
    assert found.test == plain.test
    assert found.dropped == {"not taken by weights": 3 + 5}
    assert found.account("data.sft", "conversations").used == 7 + 3 + 5 + 4 - 8
    assert sorted(Counter(asked(found.train).values()).items()) == [(1, 4 + 4), (2, 3)]
    (tmp_path / "alone").mkdir()
    alone = folder(tmp_path / "alone", {"half.jsonl": 0.5}, half=7)
    halves = {question for question in asked(found.train) if question.startswith("half")}
    assert set(asked(weighted(read_conversations(alone), alone).train)) == halves
    assert weighted(plain, source.model_copy(update={"weights": {}})) is plain


def test_a_weight_is_that_of_all_files_together(tmp_path):
    source = folder(tmp_path, {"*": 0.5}, **{f"f{i}": 1 for i in range(10)})
    assert weighted(read_conversations(source), source).mixture == {"*": {"weight": 0.5, "records": 10, "taken": 5}}


def test_the_name_of_a_record_does_not_decide(tmp_path):
    """Ids are often made from the place in the file."""
    pairs = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b", "split": "train"} for i in range(40)]
    found = []
    for order in (pairs, pairs[::-1]):
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in order))
        source = Mixture(path=str(tmp_path), files="*.jsonl", weights={"*": 0.25})
        taken = weighted(read_preferences(source), source).train
        found.append({pair["prompt"][0]["content"] for pair in taken})
    assert len(found[0]) == 10 and found[0] == found[1]


@pytest.mark.parametrize(
    ("weights", "says"),
    [({"a.json": 2}, "'a.json' matches no file. There are: a.jsonl, b.jsonl. Change the pattern in params.yaml"),
     ({"*.jsonl": 2, "a*": 0.5}, "a.jsonl matches '*.jsonl' and 'a*'; it can have one.")],
)  # fmt: skip
def test_a_pattern_that_can_not_be_meant_is_refused(tmp_path, weights, says):
    source = folder(tmp_path, weights, a=2, b=2)
    with pytest.raises(UserError) as error:
        weighted(read_conversations(source), source)
    assert says in str(error.value)


def test_documents_are_taken_by_the_weight_of_their_source(tmp_path):
    documents = table(f"text {i}" for i in range(9))
    sources = ["web", "math", "generated-a"] * 3
    documents = documents.set_column(2, "source", pa.array(sources, pa.large_string()))

    def sampled(weights, size=2):
        parts = [documents.slice(k, size) for k in range(0, 9, size)]
        lengths, mixture = write_sampled(tmp_path / "taken.parquet", lambda: iter(parts), weights)
        assert lengths.tolist() == [6] * 9
        return pq.read_table(tmp_path / "taken.parquet"), mixture

    found, mixture = sampled({"generated*": 0.34, "math": 2})
    assert Counter(found["source"].to_pylist()) == {"web": 3, "math": 6, "generated-a": 1}
    assert mixture["math"] == {"weight": 2, "documents": 3, "taken": 6}
    assert sampled({"generated*": 0.34, "math": 2}, 9)[0].equals(found)
    ids = found["id"].to_pylist()
    assert ids == sorted(ids) and set(found["text"].to_pylist()) < set(documents["text"].to_pylist())
    assert sampled({})[0].equals(documents) and sampled({})[1] == {}
    for weights, says in (
        ({"code": 2}, "'code' matches no source. There are: generated-a, math, web."),
        ({"m*": 2, "math": 1}, "source math matches 'm*' and 'math'; it can have one."),
        ({"*": 0}, "no document is taken at all"),
    ):
        with pytest.raises(UserError) as error:
            sampled(weights)
        assert says in str(error.value)
