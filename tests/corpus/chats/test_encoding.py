from itertools import pairwise

import numpy as np
import pytest

from stages.corpus.chats import encoding
from stages.corpus.tokens.vocabulary import TURN_END


def talk(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_rows_hold_every_conversation_once_with_the_assistants_words_as_labels(tokenizer):
    talks = [talk("How are you?" * (1 + n % 3), f"Answer {n}.") for n in range(20)]
    rows, counts = encoding.pack_chats(tokenizer, talks, 128, seed=0)
    assert counts["cut"] == counts["no_answer_left"] == 0 and counts["conversations"] == 20
    found = []
    for tokens, ends, filled, labels in zip(*rows, strict=True):
        for a, b in pairwise(ends):
            if a < b <= filled:
                spoken = labels[a:b] >= 0
                assert (labels[a:b][spoken] == tokens[a:b][spoken]).all()
                found.append((tokenizer.decode(tokens[a:b]), tokenizer.decode(tokens[a:b][spoken])))
        assert (labels[filled:] == -100).all()
    expected = [tokenizer.decode(encoding.render(tokenizer, t)[0]) for t in talks]
    assert sorted(found) == sorted((text, f"Answer {n}.{TURN_END}") for n, text in enumerate(expected))
    assert counts["assistant_tokens"] == int((rows.labels >= 0).sum())


def test_what_is_too_long_keeps_its_beginning_and_what_has_no_answer_left_is_counted(tokenizer):
    talks = [talk("Hi", "word " * 200), talk("word " * 200, "too late"), talk("Hi", "Hello")]
    rows, counts = encoding.pack_chats(tokenizer, talks, 128, seed=0)
    assert counts == counts | {"cut": 2, "no_answer_left": 1}
    assert rows.filled.sum() == counts["tokens"]
    with pytest.raises(ValueError, match="no conversation holds a token"):
        encoding.pack_chats(tokenizer, talks[1:2], 128, seed=0)


def test_an_answer_is_labelled_the_same_in_a_pair(tokenizer):
    record = {"prompt": talk("Which?", "")[:1], "chosen": talk("", "This")[1:], "rejected": talk("", "Not this")[1:]}
    pair = encoding.encode_pair(tokenizer, record, 127)
    rows = encoding.pack_pairs(tokenizer, [pair] * 3, 128, seed=0)
    spoken = rows.tokens[rows.labels >= 0]
    assert tokenizer.decode(spoken) == f"This{TURN_END}Not this{TURN_END}" * 3
    assert rows.pairs.sum() == 3
    assert np.array_equal(np.unique(rows.labels[rows.labels < 0]), [-100])


def test_the_page_of_examples_marks_what_is_learned(tokenizer):
    rows, _ = encoding.pack_chats(tokenizer, [talk("<b>?", f"Answer & {n}") for n in range(9)], 128, seed=0)
    page = encoding.chat_page(tokenizer, rows, 3)
    assert page.count("<pre>") == 3
    assert page.count("Answer &amp;") == page.count("<mark>") == 3 and "<b>" not in page


def test_a_pair_longer_than_its_row_is_cut_before_and_never_while_it_is_packed(tokenizer):
    record = {"prompt": talk("Which?", "")[:1], "chosen": talk("", "word " * 99)[1:], "rejected": talk("", "No")[1:]}
    pair = encoding.encode_pair(tokenizer, record, 63)
    assert pair.cut and len(pair.chosen) == 64
    rows = encoding.pack_pairs(tokenizer, [pair, pair], 128, seed=0)
    assert (rows.cu_seqlens[:, -1] == 128).all() and rows.pairs.tolist() == [1, 1]
    with pytest.raises(ValueError, match="does not fit into a row of 64"):
        encoding.pack_pairs(tokenizer, [pair], 64, seed=0)
