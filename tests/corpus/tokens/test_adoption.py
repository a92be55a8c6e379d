"""Tokenizers of public families are taken as they are, with their own names, and get what they lack."""

import pytest

from stages.contract.errors import UserError
from stages.corpus.chats.turns import encode_turns, turn_end
from stages.corpus.tokens.adoption import adopt, document_marks, marks_of
from stages.corpus.tokens.vocabulary import CHECKED, encoder, load_vocabulary, reference_encoder
from tests.families import FAMILIES, TEXTS, make_tokenizer

# begin and end of a document, padding, end of the assistant's turn
MARKS = {
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|eot_id|>"),
    "llama3-base": ("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|im_end|>"),
    "mistral": ("<s>", "</s>", "<|pad|>", "</s>"),
    "llama2": ("<s>", "</s>", "<|pad|>", "</s>"),
    "qwen2": ("<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "<|im_end|>"),
    "qwen3": ("<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "<|im_end|>"),
    "smollm3": ("<|end_of_text|>", "<|end_of_text|>", "<|im_end|>", "<|im_end|>"),
    "olmo2": ("<|endoftext|>", "<|endoftext|>", "<|pad|>", "<|endoftext|>"),
    "gemma3": ("<bos>", "<eos>", "<pad>", "<end_of_turn>"),
}
ADDED = {"llama3-base": ["<|im_start|>", "<|im_end|>"], "mistral": ["<|pad|>"], "llama2": ["<|pad|>"]}
ASK, ANSWER, AGAIN = ("Hello world, how are you?", "I am fine, thank you.", "The quick brown fox")


@pytest.fixture(scope="module", params=FAMILIES)
def adopted(request, tmp_path_factory):
    """(name, the tokenizer as transformers loads it, as it is adopted, the line, its folder)."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp(request.param)
    make_tokenizer(request.param, folder / "init")
    tokenizer, line = adopt(folder / "init")
    tokenizer.save_pretrained(folder / "out")
    return request.param, AutoTokenizer.from_pretrained(folder / "init"), tokenizer, line, folder / "out"


def turns(*contents):
    roles = ("user", "assistant") * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


def test_marks_are_those_of_the_family(adopted):
    name, _, tokenizer, _, folder = adopted
    names = tokenizer.convert_ids_to_tokens([*marks_of(tokenizer), turn_end(tokenizer)])
    assert tuple(names) == MARKS[name]
    assert document_marks(folder) == marks_of(tokenizer)


def test_what_lacks_is_added_at_the_end_and_said(adopted):
    name, before, tokenizer, line, folder = adopted
    added = ADDED.get(name, [])
    known = before.get_vocab()
    assert {token: i for token, i in tokenizer.get_vocab().items() if token in known} == known
    assert [token for token, i in sorted(load_vocabulary(folder).items(), key=lambda e: e[1])][len(known) :] == added
    assert line.endswith(
        f"{len(known):,} tokens, " + (f"{', '.join(added)} added, " if added else "")
        + ("no chat template, so ChatML" if name == "llama3-base" else "its own chat template")
    )  # fmt: skip


def test_template_and_roles_stay_as_they_are(adopted):
    from transformers import AutoTokenizer

    name, before, _, _, folder = adopted
    after = AutoTokenizer.from_pretrained(folder)
    if name != "llama3-base":
        assert after.chat_template == before.chat_template
    assert before.special_tokens_map.items() <= after.special_tokens_map.items()


def test_conversations_are_those_of_apply_chat_template(adopted):
    name, _, tokenizer, _, _ = adopted
    talk = turns(ASK, ANSWER, AGAIN, ANSWER)
    today = {"strftime_now": lambda pattern: "26 Jul 2024" if "b" in pattern else "26 July 2024"}
    for opening, messages in ((False, talk), (True, talk[:1]), (True, talk[:3])):
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=opening, return_dict=False, **today)
        ids, _ = next(encode_turns(tokenizer, [messages], opening))
        assert tokenizer.convert_ids_to_tokens(ids) == tokenizer.convert_ids_to_tokens(expected), name


def test_the_assistant_learns_its_answers_and_their_ends(adopted):
    name, _, tokenizer, _, _ = adopted
    talk = turns(ASK, ANSWER, AGAIN, ANSWER)
    ids, written = next(encode_turns(tokenizer, [talk]))
    said = tokenizer.decode([ids[at] for at in written])
    end = tokenizer.decode([turn_end(tokenizer)])
    assert said.count(ANSWER) == said.count(end) == 2 and ASK not in said and AGAIN not in said
    assert ids[written[-1]] == turn_end(tokenizer) or name == "smollm3"


def test_a_special_name_in_a_message_is_text(adopted):
    _, _, tokenizer, _, _ = adopted
    end = tokenizer.convert_ids_to_tokens(turn_end(tokenizer))
    plain, _ = next(encode_turns(tokenizer, [turns(ASK, ANSWER)]))
    odd, written = next(encode_turns(tokenizer, [turns(f"{ASK} {end}", f"{end} {ANSWER}")]))
    assert odd.count(turn_end(tokenizer)) == plain.count(turn_end(tokenizer))
    assert end in tokenizer.decode([odd[at] for at in written[:-1]])


def test_documents_are_encoded_as_hugging_face_does(adopted):
    _, _, _, _, folder = adopted
    documents = [*TEXTS, "naïve 日本 <|endoftext|> </s> <think>so</think>"]
    ours = encoder(folder, documents[:CHECKED])(documents)
    right = reference_encoder((folder / "tokenizer.json").read_text())(documents)
    assert ours.tokens.tolist() == right.tokens.tolist() and ours.lengths.tolist() == right.lengths.tolist()


def test_a_template_without_an_end_of_turn_is_refused(adopted):
    name, _, _, _, folder = adopted
    if name != "qwen2":
        pytest.skip("one family is enough")
    odd, _ = adopt(folder)
    odd.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    with pytest.raises(UserError, match="prints no special token after the assistant's turn, so a model cannot learn"):
        turn_end(odd)
