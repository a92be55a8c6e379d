import numpy as np
import pytest

VOCAB, ROW = 128, 32


@pytest.fixture(scope="session")
def rows():
    """64 packed rows of 32 tokens from documents of random length."""
    from stages.corpus.tokens.packing import pack

    draw = np.random.default_rng(0)
    lengths = draw.integers(3, 40, 90)
    return pack(draw.integers(4, VOCAB, lengths.sum()).astype(np.uint16), lengths, ROW, pad=1, seed=0)


@pytest.fixture(scope="session")
def tiny():
    """A Llama of two layers; equal weights at every call."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from stages.scaling.shapes import llama

    def make(attention="sdpa"):
        torch.manual_seed(0)
        config = llama(VOCAB, heads=2, layers=2, head_dim=16, row_tokens=ROW).config()
        return LlamaForCausalLM(LlamaConfig(**config, attn_implementation=attention, pad_token_id=1, use_cache=False))

    return make


@pytest.fixture(scope="session")
def pairs():
    """Nine prompts of random tokens with a chosen and a rejected answer."""
    from stages.corpus.chats.encoding import Pair

    draw = np.random.default_rng(0)
    made = []
    for _ in range(9):
        prompt, *answers = (draw.integers(4, VOCAB, n).tolist() for n in draw.integers(3, 14, 3))
        sides = [(prompt + answer, np.arange(len(prompt), len(prompt) + len(answer))) for answer in answers]
        made.append(Pair(*sides[0], *sides[1], cut=False))
    return made


@pytest.fixture
def reference(tiny):
    """A model with other weights than ``tiny``'s."""
    import torch

    model = tiny()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return model
