import json

from stages.contract.params import Source
from stages.corpus.conversations import Examples
from stages.corpus.leaks import without_evaluations


def test_conversations_that_give_an_evaluation_away_are_set_aside(tmp_path):
    secret = "the capital of the far country where nobody has ever been is called Nowhere by those who know"
    evals = tmp_path / "evals.jsonl"
    evals.write_text(json.dumps({"task": "quiz", "query": secret, "target": "Nowhere"}) + "\n")

    def talk(answer):
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        return {"id": answer[:9], "messages": turns}

    clean = "something else entirely that is long enough to hold more than thirteen words of its own, as it should be"
    examples = Examples([talk(f"Listen: {secret}."), talk(clean)], [talk(secret)], {"no messages": 1})
    found = without_evaluations(examples, Source(path=str(evals), files="**/*"), 13, 0.5)
    assert found.train == [talk(clean)] and found.test == examples.test
    assert found.set_aside == {"gives an evaluation away": 1, "no messages": 1}
