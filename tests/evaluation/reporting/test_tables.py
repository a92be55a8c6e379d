import json

import numpy as np

from flows.retraining.scores import scores
from stages.evaluation.measuring.measured import Answer
from stages.evaluation.reporting.tables import write_conversations, write_document_scores, write_pairs, write_samples


def test_samples_hold_turns_and_plain_answers(tmp_path):
    prompt = [{"role": "user", "content": '1 < 2 & "so" on?'}]
    answers = {name: [Answer(prompt, f"{name} <b>says</b>", name != "base")] for name in ("base", "sft", "dpo")}
    write_samples(tmp_path / "samples.jsonl", answers)
    assert json.loads((tmp_path / "samples.jsonl").read_text(encoding="utf-8")) == {
        "messages": prompt,
        "base": {"answer": "base <b>says</b>", "ended": False},
        "sft": {"answer": "sft <b>says</b>", "ended": True},
        "dpo": {"answer": "dpo <b>says</b>", "ended": True},
    }


def test_a_dropped_pair_keeps_its_line(tmp_path):
    (tmp_path / "out/eval").mkdir(parents=True)
    pairs, problems = [{"id": name} for name in "abc"], ["", "answers are the same once cut", ""]
    write_pairs(tmp_path / "out/eval/pairs.jsonl", pairs, problems, {"dpo": np.array([[-1.0, -2.0], [-4.0, -3.0]])})
    lines = [json.loads(line) for line in (tmp_path / "out/eval/pairs.jsonl").read_text().splitlines()]
    assert lines == [
        {"id": "a", "dpo": [-1.0, -2.0]},
        {"id": "b", "dropped": "answers are the same once cut"},
        {"id": "c", "dpo": [-4.0, -3.0]},
    ]
    assert scores(tmp_path, "preferences") == {"0 a": (1.0, 1.0), "2 c": (0.0, 1.0)}


def test_documents_and_conversations_have_a_line_each(tmp_path):
    nats = {"base": np.array([2.0, 3.5]), "dpo": np.array([1.0, 3.0])}
    write_document_scores(
        tmp_path / "documents.jsonl", [{"text": "é", "source": "a"}, {"text": "bc d", "source": "b"}], nats
    )
    lines = [json.loads(line) for line in (tmp_path / "documents.jsonl").read_text().splitlines()]
    assert lines == [
        {"source": "a", "bytes": 2, "base": 2.0, "dpo": 1.0}, {"source": "b", "bytes": 4, "base": 3.5, "dpo": 3.0}
    ]  # fmt: skip
    both = {"base": np.array([(2.0, 7), (0.0, 0)]), "dpo": np.array([(1.5, 7), (0.0, 0)])}
    write_conversations(tmp_path / "conversations.jsonl", both)
    lines = [json.loads(line) for line in (tmp_path / "conversations.jsonl").read_text().splitlines()]
    assert lines == [{"tokens": 7, "base": 2.0, "dpo": 1.5}, {"tokens": 0, "base": 0.0, "dpo": 0.0}]
    write_conversations(tmp_path / "conversations.jsonl", {"base": None, "dpo": None})
    assert (tmp_path / "conversations.jsonl").read_text() == ""
