import numpy as np
import pytest

from stages.contract import UserError
from stages.corpus.chats.encoding import render
from stages.corpus.tokens.vocabulary import TURN_END
from stages.evaluation.measuring.assistant import assistant_loss, openings
from stages.evaluation.measuring.generation import greedy

CHAT = [
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hey!"},
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "I am good."},
]


def test_the_assistant_wrote_its_words_and_the_end_of_its_turns(tokenizer):
    ids, written = render(tokenizer, CHAT)
    assert tokenizer.decode([ids[p] for p in written]) == f"Hey!{TURN_END}I am good.{TURN_END}"


def test_loss_equals_transformers_loss_with_labels_set_by_hand(model, tokenizer):
    import torch

    short = CHAT[:2]
    total, tokens = 0.0, 0
    for chat in (CHAT, short):
        ids, written = render(tokenizer, chat)
        labels = torch.full((1, len(ids)), -100)
        labels[0, written] = torch.tensor(ids)[written]
        with torch.inference_mode():
            total += float(model(input_ids=torch.tensor([ids]), labels=labels).loss) * len(written)
        tokens += len(written)
    found, *_ = assistant_loss(model, tokenizer, [CHAT, short])
    assert found["tokens"] == tokens
    assert found["nats_per_token"] == pytest.approx(total / tokens, abs=1e-5)


def test_long_conversations_are_cut_and_silent_ones_dropped(model, tokenizer):
    long = [CHAT[0], {"role": "assistant", "content": "word " * 200}]
    silent = [{"role": "user", "content": "word " * 200}, CHAT[1]]
    unanswered = [CHAT[0]]
    found, *_ = assistant_loss(model, tokenizer, [long, silent, unanswered])
    _, written = render(tokenizer, long)
    assert found["tokens"] == 129 - written[0] and found["cut"] == 2 and found["no_answer_left"] == 2
    assert assistant_loss(model, tokenizer, [silent]) == (None, None, None)


def test_a_template_without_generation_blocks_is_named(model, tokenizer):
    with pytest.raises(UserError, match="generation"):
        assistant_loss(model, tokenizer, [[CHAT[0]]])


def test_opening_ends_where_the_first_user_is_answered():
    greeting = {"role": "assistant", "content": "Welcome!"}
    assert openings([CHAT, [greeting], [greeting, *CHAT]]) == [CHAT[:1], [greeting, CHAT[0]]]


def test_greedy_takes_the_likeliest_token_whatever_else_is_in_the_batch(model):
    import torch

    prompts = [np.random.default_rng(i).integers(4, 512, size).tolist() for i, size in enumerate((3, 40, 11))]
    answers = greedy(model, prompts, new_tokens=6, stop=2)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        for token in answer:
            with torch.inference_mode():
                assert token == int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)
        assert len(answer) == 6 or answer[-1] == 2


def test_greedy_ends_with_the_stop_token_and_cuts_long_prompts_on_the_left(model):
    prompt = np.random.default_rng(0).integers(4, 512, 300).tolist()
    (free,) = greedy(model, [prompt], new_tokens=8, stop=0)
    assert greedy(model, [prompt[-120:]], new_tokens=8, stop=0) == [free]
    assert len(greedy(model, [prompt], new_tokens=500, stop=0)[0]) <= 64
    stop = free[2]
    assert greedy(model, [prompt], new_tokens=8, stop=stop) == [free[: free.index(stop) + 1]]
