import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contract.params import Source
from stages.corpus.chats.conversations import question, read_conversations, read_preferences


def source(tmp_path, records):
    path = tmp_path / "chats.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return Source(path=str(path), files="**/*")


def chat(question, split=None, **more):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "yes"}]
    return {"messages": messages} | ({"split": split} if split else {}) | more


@pytest.mark.parametrize(
    ("split", "where"),
    [("train", "train"), ("train_sft", "train"), ("Train", "train"), ("test", "test"), ("test_sft", "test"),
     ("validation", "test"), ("dev", "test")],
)  # fmt: skip
def test_a_stated_split_is_kept(tmp_path, split, where):
    found = read_conversations(source(tmp_path, [chat(f"q{i}", split) for i in range(20)]))
    assert len(getattr(found, where)) == 20


def test_an_unknown_split_is_rejected(tmp_path):
    found = read_conversations(source(tmp_path, [chat("a", "train"), chat("b", "part 3")]))
    assert (len(found.train), found.rejected) == (1, {"unknown split": 1})


def test_without_a_split_a_tenth_is_held_out_by_question(tmp_path):
    records = [chat(f"q{i}", id=f"c{i}") for i in range(1000)]
    found = read_conversations(source(tmp_path, records))
    assert 60 < len(found.test) < 140 and len(found.train) + len(found.test) == 1000
    again = read_conversations(source(tmp_path, records[::-1]))
    assert {c["id"] for c in again.test} == {c["id"] for c in found.test}
    renamed = read_conversations(source(tmp_path, [record | {"id": f"other {record['id']}"} for record in records]))
    assert [c["messages"] for c in renamed.test] == [c["messages"] for c in found.test]


@pytest.mark.parametrize("head", [[], [{"role": "system", "content": "You are a shop."}]])
def test_conversations_the_assistant_opens_are_all_used(tmp_path, head):
    welcome = {"role": "assistant", "content": "Welcome!"}
    records = [{"messages": [*head, welcome, *chat(f"question {i}")["messages"]]} for i in range(400)]
    found = read_conversations(source(tmp_path, records))
    assert len(found.train) + len(found.test) == 400 and 20 < len(found.test) < 60


def test_conversations_without_a_user_are_questions_of_their_own(tmp_path):
    head = {"role": "system", "content": "Write."}
    records = [{"messages": [head, {"role": "assistant", "content": f"text {i // 2}"}]} for i in range(800)]
    found = read_conversations(source(tmp_path, records))
    assert len(found.train) + len(found.test) == 800 and 40 < len(found.test) < 120 and len(found.test) % 2 == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([None, "train", "test"])), max_size=30))
def test_a_question_is_on_one_side_whatever_is_stated(tmp_path_factory, records):
    pairs = [
        {"id": str(i), "prompt": f"q{q}", "chosen": f"a{i}", "rejected": "b"} | ({"split": s} if s else {})
        for i, (q, s) in enumerate(records)
    ]
    if not pairs:
        return
    found = read_preferences(source(tmp_path_factory.mktemp("pairs"), pairs))
    asked = [{e["prompt"][0]["content"] for e in side} for side in (found.train, found.test)]
    assert not asked[0] & asked[1]
    stated = {q for q, s in records if s == "test"}
    lost = sum(s == "train" and q in stated for q, s in records)
    assert found.dropped == ({"prompt is held out": lost} if lost else {})
    assert found.read == len(found.train) + len(found.test) + lost
    assert {e["id"] for e in found.test} >= {str(i) for i, (_, s) in enumerate(records) if s == "test"}


def test_one_question_is_on_one_side_of_conversations_and_of_pairs(tmp_path):
    asked = [" café au lait? ", *(f"q{i}" for i in range(300))]
    spelled = [unicodedata.normalize("NFD", text).strip() for text in asked]
    talks = read_conversations(source(tmp_path, [chat(text) for text in asked]))
    pairs = read_preferences(source(tmp_path, [{"prompt": q, "chosen": "a", "rejected": "b"} for q in spelled]))
    assert [question(e) for e in talks.test] == [question(e) for e in pairs.test]
    assert [question(e) for e in talks.train] == [question(e) for e in pairs.train]


def test_a_prompt_that_is_held_out_is_not_trained_on(tmp_path):
    found = read_conversations(source(tmp_path, [chat("same", "train"), chat("same", "test"), chat("other", "train")]))
    assert [c["messages"][0]["content"] for c in found.train] == ["other"]
    assert found.dropped == {"prompt is held out": 1} and not found.rejected


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"id": 1}, "no messages"),
        ({"messages": []}, "messages are not a list of turns"),
        ({"messages": "hello"}, "messages are not a list of turns"),
        ({"messages": [{"role": "user", "content": 3}]}, "a turn without text"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "unknown role"),
        ({"messages": [{"role": "user", "content": "  "}]}, "empty turn"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no assistant turn"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "invalid UTF-8"),
        ('{"messages": ', "malformed JSON"),
    ],
)
def test_an_unusable_conversation_is_counted_and_costs_no_other(tmp_path, record, reason):
    found = read_conversations(source(tmp_path, [chat("a", "train"), record, chat("b", "train")]))
    assert len(found.train) == 2
    assert found.rejected == {reason: 1} and not found.dropped


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chosen": None}, "no chosen"),
        ({"chosen": 7}, "chosen: messages are not a list of turns"),
        ({"prompt": ""}, "prompt: empty turn"),
        ({"rejected": "good"}, "chosen and rejected are the same"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "prompt: does not end in a user's turn"),
    ],
)
def test_an_unusable_pair_is_counted(tmp_path, change, reason):
    pair = {"prompt": "do it", "chosen": "good", "rejected": "bad", "split": "train"}
    found = read_preferences(source(tmp_path, [pair, pair | change]))
    assert (len(found.train), found.rejected) == (1, {reason: 1})


def test_strings_become_turns_and_a_repeated_prompt_is_dropped_from_the_answers(tmp_path):
    asked, answered = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    worse = {"role": "assistant", "content": "b"}
    pairs = [
        {"prompt": "q", "chosen": "a", "rejected": "b", "split": "train"},
        {"prompt": [asked], "chosen": [asked, answered], "rejected": [asked, worse], "split": "train"},
    ]
    found = read_preferences(source(tmp_path, pairs)).train
    assert [{k: p[k] for k in ("prompt", "chosen", "rejected")} for p in found] == [
        {"prompt": [asked], "chosen": [answered], "rejected": [worse]}
    ] * 2
