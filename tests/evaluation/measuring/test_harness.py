import math

import numpy as np
import pytest

from stages.corpus.chats.turns import encode_texts
from stages.evaluation.measuring import harness
from stages.evaluation.measuring.examples import tasks
from stages.evaluation.measuring.scoring import token_logprobs
from tests.evaluation.measuring.test_examples import RECORDS


def own_logprob(model, tokenizer, query, continuation):
    whole, query = encode_texts(tokenizer, [query + continuation, query])
    start = len(query)
    (scores,) = token_logprobs(model, [whole], [np.arange(start, len(whole))])
    return scores.sum()


def test_results_agree_with_our_own_scores_and_repeat(model, tokenizer):
    found = tasks(RECORDS, None, 128).found
    results, samples = harness.evaluate(model, tokenizer, tokenizer.eos_token_id, found)
    own = [[own_logprob(model, tokenizer, r.query, " " + c) for c in r.choices] for r in found["mc"]]
    right = [int(np.argmax(scores)) == r.gold for scores, r in zip(own, found["mc"], strict=True)]
    each = [np.divide(scores, [len(c) for c in r.choices]) for scores, r in zip(own, found["mc"], strict=True)]
    assert results["mc"]["acc"] == np.mean(right)
    assert results["mc"]["acc_norm"] == np.mean(
        [np.argmax(e) == r.gold for e, r in zip(each, found["mc"], strict=True)]
    )
    assert results["mc"]["acc_stderr"] == pytest.approx(np.std(right, ddof=1) / math.sqrt(5))
    nats = [-own_logprob(model, tokenizer, r.query, r.target) for r in found["cloze"]]
    assert results["cloze"]["nats"] == pytest.approx(np.mean(nats), abs=1e-4)
    assert results["gen"]["exact_match"] in (0.0, 1.0)
    assert [s["id"] for s in samples] == [r.id for rows in found.values() for r in rows]
    assert harness.evaluate(model, tokenizer, tokenizer.eos_token_id, found) == (results, samples)


def test_an_answer_with_and_without_its_space_is_one_question(model, tokenizer):
    query, names = "The capital of France is", ("Paris", " Paris", "The <|im_end|>")
    rows = [{"task": "a/b {{ c }}", "format": "cloze", "query": query, "target": name} for name in names]
    rows += [{"task": "mc", "format": "mc", "query": query, "choices": [name, "Rome"], "gold": 0} for name in names]
    results, samples = harness.evaluate(model, tokenizer, tokenizer.eos_token_id, tasks(rows, None, 128).found)
    assert [(s["task"], s["id"]) for s in samples[:3]] == [("a/b {{ c }}", str(i)) for i in range(3)]
    assert samples[0]["nats"] == samples[1]["nats"] != samples[2]["nats"]
    assert samples[2]["nats"] == pytest.approx(-own_logprob(model, tokenizer, query, " The <|im_end|>"), abs=1e-4)
    assert results["mc"]["examples"] == 3 and samples[3] == samples[4] | {"id": "0"}


def test_no_task_is_no_result(model, tokenizer):
    assert harness.evaluate(model, tokenizer, 0, {}) == ({}, [])


def test_answers_are_compared_without_case_punctuation_and_what_follows():
    doc = {"target": "Richard Nixon", "aliases": ["Nixon", "Peña"]}
    assert harness._gen_results(doc, [" nixon.\nQuestion: next"]) == {"exact_match": 1.0}
    assert harness._gen_results(doc, ["Richard"]) == {"exact_match": 0.0}
    assert harness._gen_results({**doc, "aliases": []}, [" RICHARD  NIXON"]) == {"exact_match": 1.0}
    assert harness._gen_results(doc, ["pen\u0303a"]) == {"exact_match": 1.0}
