from stages.corpus.chats.conversations import Examples
from stages.corpus.chats.leaks import without_evaluations
from stages.corpus.filtering.contamination import index


def test_conversations_that_give_an_evaluation_away_are_dropped():
    secret = "the capital of the far country where nobody has ever been is called Nowhere by those who know"

    def talk(answer):
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        return {"id": answer[:9], "messages": turns}

    clean = "something else entirely that is long enough to hold more than thirteen words of its own, as it should be"
    examples = Examples([talk(f"Listen: {secret}."), talk(clean)], [talk(secret)], 4, {"no messages": 1}, {})
    found = without_evaluations(examples, index([[secret, "Nowhere"]], 13), 0.5)
    assert found.train == [talk(clean)] and found.test == examples.test
    assert found.dropped == {"gives an evaluation away": 1} and found.rejected == {"no messages": 1}
    assert found.account("data.sft", "conversations").used == 1
