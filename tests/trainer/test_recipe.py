from hypothesis import given
from hypothesis import strategies as st

from stages.scaling import memory
from stages.scaling.shapes import llama
from stages.trainer.recipe import Hardware, resolve

MEMORY = memory.estimates(llama(4096, 4, 4, 32, 512))
H100 = Hardware("cuda", "H100", 80 * 2**30, True)
CPU = Hardware("cpu", "2 threads", 16 * 2**30, False)


@given(st.integers(1, 300), st.sampled_from([CPU, H100]), st.sampled_from([128, 512, 4096]))
def test_the_batch_is_the_same_on_every_machine(batch_rows, hardware, row_tokens):
    recipe = resolve(hardware, batch_rows, row_tokens, MEMORY)
    assert recipe.micro_batch * recipe.accumulation == batch_rows


def test_little_memory_means_more_accumulation():
    small = Hardware("cuda", "small", 2 * 2**30, True)
    assert resolve(small, 64, 512, MEMORY).accumulation > resolve(H100, 64, 512, MEMORY).accumulation == 1


def test_precision_follows_the_hardware_and_every_choice_has_a_reason():
    assert resolve(H100, 8, 512, MEMORY).precision == "bf16"
    recipe = resolve(CPU, 8, 512, MEMORY)
    assert recipe.precision == "fp32"
    assert all(line.split(maxsplit=2)[2] for line in recipe.table().splitlines())
