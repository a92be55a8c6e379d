import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.corpus.filtering.contamination import index, passages
from stages.evaluation.measuring.examples import tasks

RECORDS = [
    {"id": f"mc/{i}", "task": "mc", "format": "mc", "query": f"Question {i}?\nAnswer:", "choices": c, "gold": i % 2}
    for i, c in enumerate([["yes", "no"], ["the house", "a ship"], ["one", "two"], ["king", "queen"], ["to", "be"]])
] + [
    {"id": "cloze/0", "task": "cloze", "format": "cloze", "query": "It is a truth universally", "target": " known"},
    {"id": "cloze/1", "task": "cloze", "format": "cloze", "query": "In want of a", "target": " wife"},
    {"id": "gen/0", "task": "gen", "format": "gen", "query": "Question: who?\nAnswer:", "target": "me"},
    {"task": "humaneval", "format": "code", "prompt": "def f():"},
    {"task": "odd", "format": "riddle"},
    {"id": "mc/bad", "task": "mc", "format": "mc", "query": "Q", "choices": ["a", "b"], "gold": 2},
]
GOOD = {"task": "t", "format": "mc", "query": "q", "choices": ["a", "b"], "gold": 0, "target": "a", "aliases": ["b"]}

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(), st.floats(), st.text(max_size=5),
    st.sampled_from(["mc", "cloze", "gen", "code", "a", "{{ 1 / 0 }}", "{% if %}", " ", "\0", 10**400]),
)  # fmt: skip
ANY_JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
FIELDS = st.dictionaries(st.sampled_from([*GOOD, "id"]), ANY_JSON, max_size=4)


def test_unusable_formats_and_records_are_named():
    found, not_run, read, rejected, dropped = tasks(RECORDS, None, 128)
    assert {name: len(rows) for name, rows in found.items()} == {"mc": 5, "cloze": 2, "gen": 1}
    assert not_run["humaneval"] == "would run code that the model writes"
    assert "riddle" in not_run["odd"] and not_run["mc"] == "1 x gold is not the place of a choice"
    assert (read, rejected, dropped) == (11, {"gold is not the place of a choice": 1}, {"format is not run": 2})


def test_an_answer_beyond_the_context_is_dropped():
    found = tasks(RECORDS, None, 6)
    assert [r.id for r in found.found["mc"]] == ["mc/0", "mc/2", "mc/3", "mc/4"]
    assert found.dropped["answer beyond the context"] == 1


def test_limit_is_spread_over_the_task():
    found = tasks(RECORDS, 2, 128)
    assert [r.id for r in found.found["mc"]] == ["mc/0", "mc/2"]
    account = found.account({"malformed JSON": 1})
    assert account.read == 12 == account.used + 2 + 2 + 3


@pytest.mark.parametrize(
    ("query", "answer", "joined"),
    [("is", "Paris", " Paris"), ("is", " Paris", " Paris"), ("is ", "Paris", "Paris"), ("def f():", "\n  x", "\n  x")],
)
def test_one_space_joins_query_and_answer_without_white_space(query, answer, joined):
    record = {"task": "t", "query": query, "target": answer, "choices": [answer, "b"], "gold": 0}
    found = tasks([record | {"format": "cloze"}, record | {"format": "mc", "task": "u"}], None, None).found
    assert found["t"][0].continuations == [joined] and found["u"][0].continuations[0] == joined


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": ["mc"]}, "format is not a text"),
        ({"format": {}}, "format is not a text"),
        ({"task": None}, "task is not a name"),
        ({"task": "a\nb"}, "task is not a name"),
        ({"query": 3}, "query is not a text"),
        ({"choices": []}, "choices are not two or more texts"),
        ({"choices": ["a", None]}, "choices are not two or more texts"),
        ({"choices": {"a": "b"}}, "choices are not two or more texts"),
        ({"gold": True}, "gold is not the place of a choice"),
        ({"gold": -1}, "gold is not the place of a choice"),
        ({"gold": 1.0}, "gold is not the place of a choice"),
        ({"gold": 10**400}, "gold is not the place of a choice"),
        ({"format": "cloze", "target": 42}, "target is not a text"),
        ({"format": "gen", "aliases": "b"}, "aliases are not texts"),
        ({"format": "gen", "aliases": [1]}, "aliases are not texts"),
    ],
)
def test_a_field_of_another_type_is_rejected(change, reason):
    found = tasks([GOOD, GOOD | change], None, 128)
    assert found.rejected == {reason: 1} and len(found.found["t"]) == 1


@settings(max_examples=300)
@given(st.lists(FIELDS.map(lambda changed: GOOD | changed), max_size=4))
@example([{"format": ["mc"]}, {}])
def test_any_json_in_any_field_is_counted(records):
    found = tasks([GOOD, *records], None, 128)
    assert found.account({}).used + sum(found.rejected.values()) + sum(found.dropped.values()) == len(records) + 1
    assert len(found.found["t"]) >= 1
    for row in found.found["t"]:
        orjson.dumps([row.id, row.query, row.choices, row.target, row.aliases])
    index([list(passages(record)) for record in records], 13)
