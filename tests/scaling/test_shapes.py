import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.scaling.shapes import ASPECT, divisible, llama, nearest


@settings(max_examples=30)
@given(st.floats(2e6, 1e11), st.sampled_from([4096, 32768]), st.sampled_from([64, 128]))
def test_the_nearest_shape_is_near_and_in_proportion(parameters, vocab, head_dim):
    shape = nearest(parameters, vocab, head_dim, 2048)
    assert shape.hidden_size == shape.num_attention_heads * head_dim
    assert ASPECT[0] <= shape.hidden_size / shape.num_hidden_layers <= ASPECT[1]
    floor = min(llama(vocab, h, 2, head_dim, 2048).matmul_parameters for h in (1, 2))
    ceiling = llama(vocab, 128, 96, head_dim, 2048).matmul_parameters
    if 2 * floor < parameters < ceiling:
        assert shape.matmul_parameters == pytest.approx(parameters, rel=0.35)


@pytest.mark.parametrize(("heads", "layers"), [(2, 4), (16, 24)])
def test_parameters_are_those_of_transformers(heads, layers):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = llama(4096, heads, layers, 64, 512)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape.config()))
    assert sum(p.numel() for p in model.parameters()) == shape.parameters
    matmul = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    norms = shape.matmul_parameters - matmul
    assert 0 < norms < 0.01 * matmul


def test_flops_per_token_of_llama_7b():
    """12·L·d·T for attention, as torchtitan and nanoGPT count it."""
    shape = llama(32000, 32, 32, 128, 2048)
    attention = 12 * 32 * 4096 * 2048
    assert shape.flops_per_token(2048) == 6 * shape.matmul_parameters + attention


@given(st.floats(0.1, 1e6))
def test_a_batch_is_near_what_was_wanted_and_divides_well(rows):
    batch = divisible(rows)
    assert batch == pytest.approx(max(rows, 1), rel=0.34, abs=0.5)
    odd = batch
    while odd % 2 == 0:
        odd //= 2
    assert odd in (1, 3)
