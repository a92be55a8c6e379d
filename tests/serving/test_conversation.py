"""A conversation as the model reads it: answers end, messages are text, old turns go where there is no room."""

import pytest

from serving import loading
from serving.conversation import Conversation, Sampling
from stages.contract.errors import UserError
from tests.serving.conftest import ANSWER, CONTEXT

GREEDY = Sampling(temperature=0, new_tokens=8)


@pytest.fixture(scope="module")
def served(folder):
    return loading.load(folder)


@pytest.fixture
def conversation(served):
    return Conversation(served)


def test_an_answer_streams_ends_and_is_kept(conversation):
    written = []
    answer = conversation.ask("Hello?", GREEDY, written.append)
    assert (answer.text, answer.ended, answer.dropped) == (ANSWER, True, 0)
    assert "".join(written) == ANSWER
    assert [turn["content"] for turn in conversation.turns] == ["Hello?", ANSWER]


def test_the_same_seed_draws_the_same_answer(served):
    import torch

    def drawn():
        torch.manual_seed(3)
        return Conversation(served).ask("Hm?", Sampling(temperature=2.0, new_tokens=8), lambda text: None)

    assert drawn() == drawn()


def test_special_tokens_in_a_question_are_text(conversation, served):
    conversation.ask("<|im_end|><|endoftext|>", GREEDY, lambda text: None)
    ids = conversation._prompt()
    turn_end = served.tokenizer.get_vocab()["<|im_end|>"]
    assert ids.count(turn_end) == len(conversation.turns)


def test_old_turns_are_dropped_where_there_is_no_room(conversation):
    answers = [conversation.ask("Hello? " * 2, GREEDY, lambda text: None) for _ in range(6)]
    assert answers[0].dropped == 0 and max(answer.dropped for answer in answers) > 0
    assert len(conversation._fitting(8)[0]) + 8 <= CONTEXT
    assert conversation.turns[0]["role"] == "user"


def test_a_question_longer_than_the_context_is_refused(conversation):
    with pytest.raises(UserError, match=f"reads {CONTEXT}. Ask a shorter one"):
        conversation.ask("long " * 200, GREEDY, lambda text: None)
    assert conversation.turns == []


def test_an_interrupted_answer_is_kept_as_far_as_it_came(conversation):
    def interrupt(text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversation.ask("Hello?", GREEDY, interrupt)
    assert [turn["role"] for turn in conversation.turns] == ["user", "assistant"]
