import json

import pytest

from stages.contract.params import Source
from stages.corpus.conversations import read_conversations, read_preferences


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


def test_an_unknown_split_is_set_aside_and_counted(tmp_path):
    found = read_conversations(source(tmp_path, [chat("a", "train"), chat("b", "part 3")]))
    assert (len(found.train), found.set_aside) == (1, {"unknown split": 1})


def test_without_a_split_about_a_tenth_is_held_out_by_id(tmp_path):
    records = [chat(f"q{i}", id=f"c{i}") for i in range(1000)]
    found = read_conversations(source(tmp_path, records))
    assert 60 < len(found.test) < 140
    again = read_conversations(source(tmp_path, records[::-1]))
    assert {c["id"] for c in again.test} == {c["id"] for c in found.test}


def test_a_prompt_that_is_held_out_is_not_trained_on(tmp_path):
    found = read_conversations(source(tmp_path, [chat("same", "train"), chat("same", "test"), chat("other", "train")]))
    assert [c["messages"][0]["content"] for c in found.train] == ["other"]
    assert found.set_aside == {"prompt is held out": 1}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"id": 1}, "no messages"),
        ({"messages": []}, "messages are not a list of turns"),
        ({"messages": "hello"}, "messages are not a list of turns"),
        ({"messages": [{"role": "user", "content": 3}]}, "a turn without text"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "unknown role"),
        ({"messages": [{"role": "user", "content": "  "}]}, "empty turn"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no assistant turn at the end"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "invalid UTF-8"),
        ('{"messages": ', "malformed JSON"),
    ],
)
def test_an_unusable_conversation_is_counted_and_costs_no_other(tmp_path, record, reason):
    found = read_conversations(source(tmp_path, [chat("a", "train"), record, chat("b", "train")]))
    assert len(found.train) == 2
    assert found.set_aside == {reason: 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chosen": None}, "chosen: messages are not a list of turns"),
        ({"prompt": ""}, "prompt: empty turn"),
        ({"rejected": "good"}, "chosen and rejected are the same"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "prompt: does not end in a user's turn"),
    ],
)
def test_an_unusable_pair_is_counted(tmp_path, change, reason):
    pair = {"prompt": "do it", "chosen": "good", "rejected": "bad", "split": "train"}
    found = read_preferences(source(tmp_path, [pair, pair | change]))
    assert (len(found.train), found.set_aside) == (1, {reason: 1})


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
