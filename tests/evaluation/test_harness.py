import math

import numpy as np
import pytest

from stages.evaluation import harness
from stages.evaluation.scoring import token_logprobs

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


def test_unusable_formats_and_records_are_named():
    found, skipped = harness.tasks(RECORDS, None, 128)
    assert {name: len(rows) for name, rows in found.items()} == {"mc": 5, "cloze": 2, "gen": 1}
    assert skipped["humaneval"] == "would run code that the model writes"
    assert "riddle" in skipped["odd"] and skipped["mc"].endswith(": 1")


def test_an_answer_beyond_the_context_is_left_out():
    found, skipped = harness.tasks(RECORDS, None, 6)
    assert [r["id"] for r in found["mc"]] == ["mc/0", "mc/2", "mc/3", "mc/4"]
    assert skipped["mc"].endswith(": 2")


def test_limit_is_spread_over_the_task():
    found, _ = harness.tasks(RECORDS, 2, 128)
    assert [r["id"] for r in found["mc"]] == ["mc/0", "mc/2"]
    assert harness.chance(found["mc"]) == 0.5 and harness.chance(found["cloze"]) is None


def own_logprob(model, tokenizer, query, continuation):
    whole, start = tokenizer.encode(query + continuation), len(tokenizer.encode(query))
    (scores,) = token_logprobs(model, [whole], [np.arange(start, len(whole))])
    return scores.sum()


def test_results_agree_with_our_own_scores_and_repeat(model, tokenizer):
    found, _ = harness.tasks(RECORDS, None, 128)
    results, samples = harness.evaluate(model, tokenizer, tokenizer.eos_token_id, found)
    own = [[own_logprob(model, tokenizer, r["query"], " " + c) for c in r["choices"]] for r in found["mc"]]
    right = [int(np.argmax(scores)) == r["gold"] for scores, r in zip(own, found["mc"], strict=True)]
    assert results["mc"]["acc"] == np.mean(right)
    assert results["mc"]["acc_stderr"] == pytest.approx(np.std(right, ddof=1) / math.sqrt(5))
    nats = [-own_logprob(model, tokenizer, r["query"], r["target"]) for r in found["cloze"]]
    assert results["cloze"]["nats"] == pytest.approx(np.mean(nats), abs=1e-4)
    assert results["gen"]["exact_match"] in (0.0, 1.0)
    assert [s["id"] for s in samples] == [r["id"] for rows in found.values() for r in rows]
    assert harness.evaluate(model, tokenizer, tokenizer.eos_token_id, found) == (results, samples)


def test_no_task_is_no_result(model, tokenizer):
    assert harness.evaluate(model, tokenizer, 0, {}) == ({}, [])


def test_answers_are_compared_without_case_punctuation_and_what_follows():
    doc = {"target": "Richard Nixon", "aliases": ["Nixon"]}
    assert harness._gen_results(doc, [" nixon.\nQuestion: next"]) == {"exact_match": 1.0}
    assert harness._gen_results(doc, ["Richard"]) == {"exact_match": 0.0}
    assert harness._gen_results({**doc, "aliases": None}, [" RICHARD  NIXON"]) == {"exact_match": 1.0}
