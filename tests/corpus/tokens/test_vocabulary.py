import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.contract.params import load_params
from stages.corpus.reading.documents import read_documents
from stages.corpus.tokens import vocabulary
from stages.corpus.tokens.merges import _byte_letters, train
from stages.corpus.tokens.vocabulary import (
    CHECKED,
    SPECIAL,
    encoder,
    fast_encoder,
    load_vocabulary,
    reference_encoder,
    save_tokenizer,
)
from tests.corpus.helpers import table

SIZE = 640


@pytest.fixture(scope="module")
def documents():
    shipped = read_documents(load_params().data.validation).table
    return [*shipped["text"].to_pylist()[::6], "int main() {\n\treturn 0;\n}", "naïve café 日本語 😀", SPECIAL[0]]


@pytest.fixture(scope="module")
def folder(documents, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    pq.write_table(table(documents), path / "documents.parquet")
    save_tokenizer(train(path / "documents.parquet", SIZE), path)
    return path


@pytest.fixture(scope="module")
def encoders(folder):
    text = (folder / "tokenizer.json").read_text()
    return fast_encoder(text), reference_encoder(text)


def test_the_vocabulary_has_all_bytes_all_specials_and_the_size_asked_for(folder):
    vocab = load_vocabulary(folder)
    assert len(vocab) == SIZE and sorted(vocab.values()) == list(range(SIZE))
    assert [vocab[token] for token in SPECIAL] == list(range(SIZE - 4, SIZE))
    assert all(letter in vocab for letter in _byte_letters())


def test_the_merges_are_those_of_hugging_face(folder, documents):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    other = Tokenizer(models.BPE())
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - 4, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    other.train_from_iterator(documents, trainer)
    ours = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    assert [list(pair) for pair in ours] == [list(pair) for pair in json.loads(other.to_str())["model"]["merges"]]


def test_training_twice_gives_the_same_bytes(folder, tmp_path):
    save_tokenizer(train(folder / "documents.parquet", SIZE), tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_the_files_are_those_that_transformers_saves(folder, tmp_path):
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    names = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert {path.name for path in tmp_path.iterdir()} == names
    for name in names - {"tokenizer_config.json"}:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    theirs, ours = (json.loads((path / "tokenizer_config.json").read_text()) for path in (tmp_path, folder))
    assert {name: theirs[name] for name in ours} == ours


def test_gigatoken_gives_the_ids_of_hugging_face(encoders, documents):
    fast, reference = (encoder(documents) for encoder in encoders)
    assert fast.tokens.dtype == reference.tokens.dtype == np.uint32
    assert np.array_equal(fast.tokens, reference.tokens) and np.array_equal(fast.lengths, reference.lengths)


mixed = st.text() | st.lists(st.sampled_from([*SPECIAL, "<|", " a", "\n", "  ", "'s", "é", "9"])).map("".join)


@settings(max_examples=150)
@given(st.lists(mixed, min_size=1, max_size=3))
@example([SPECIAL[0]])
def test_any_text_comes_back_and_no_text_makes_a_special_token(encoders, folder, strings):
    fast, reference = (encoder(strings) for encoder in encoders)
    assert np.array_equal(fast.tokens, reference.tokens) and np.array_equal(fast.lengths, reference.lengths)
    assert (fast.tokens < SIZE - 4).all()
    letters = {letter: byte for byte, letter in enumerate(_byte_letters())}
    token = {number: name for name, number in load_vocabulary(folder).items()}
    back = bytes(letters[c] for number in fast.tokens.tolist() for c in token[number])
    assert back == "".join(strings).encode()


def test_hugging_face_encodes_when_gigatoken_is_wrong(folder, documents, monkeypatch, capsys):
    right = encoder(folder, documents[:CHECKED])(documents)
    assert "instead" not in capsys.readouterr().out
    wrong = lambda text: lambda strings: vocabulary.Encoded(np.zeros(3, np.uint32), np.array([3]))  # noqa: E731
    unknown = lambda text: lambda strings: 1 / 0  # noqa: E731
    for fast, why in ((wrong, "gigatoken's ids are others"), (unknown, "cannot encode by this tokenizer (division")):
        monkeypatch.setattr(vocabulary, "fast_encoder", fast)
        other = encoder(folder, documents[:CHECKED])(documents)
        said = capsys.readouterr().out
        assert why in said and "Hugging Face tokenizers encode instead" in said
        assert np.array_equal(right.tokens, other.tokens) and np.array_equal(right.lengths, other.lengths)


def test_batches_change_nothing(folder, documents):
    run = encoder(folder, documents[:CHECKED])
    whole, single = run(documents), [run([document]) for document in documents]
    assert np.array_equal(whole.tokens, np.concatenate([part.tokens for part in single]))
    assert np.array_equal(whole.lengths, np.concatenate([part.lengths for part in single]))


def test_a_text_too_poor_for_the_size_gives_fewer_tokens(tmp_path):
    pq.write_table(table(["ab ab ab"]), tmp_path / "documents.parquet")
    save_tokenizer(train(tmp_path / "documents.parquet", SIZE), tmp_path)
    assert 260 < len(load_vocabulary(tmp_path)) < 270


def test_the_chat_template_marks_what_the_assistant_learns(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.eos_token, tokenizer.pad_token) == (SPECIAL[0], SPECIAL[1]) and len(tokenizer) == SIZE
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "Bye!"},
    ]
    assert tokenizer.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n"
    )
    encoded = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    learned = [i for i, keep in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if keep]
    assert tokenizer.decode(learned) == "Hi.<|im_end|>Bye!<|im_end|>"
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    prompt = tokenizer.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=True)
    assert whole.startswith(prompt), "generation must start where training did"
