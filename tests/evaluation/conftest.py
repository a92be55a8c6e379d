import pytest

from stages.contract.params import Source
from stages.corpus.documents import read_documents
from stages.corpus.vocabulary import CHAT_TEMPLATE, END_OF_TEXT, PAD, SPECIAL, TURN_END, TURN_START


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Real prose, of lengths below, at and above the tiny model's context."""
    rows = read_documents(Source(path="data/validation.jsonl.zst", files="**/*")).table.to_pylist()
    return [row["text"][:size] for row, size in zip(rows[::9], (40, 300, 900, 2500, 3, 1200), strict=False)]


@pytest.fixture(scope="session")
def tokenizer(texts):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        additional_special_tokens=[TURN_START, TURN_END],
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture(scope="session")
def model(tokenizer):
    """Random weights, larger than at initialisation, so that probabilities differ from position to position."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).eval()
