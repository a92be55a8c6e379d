from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contract.errors import UserError
from stages.contract.params import load_params
from stages.scaling.shapes import llama
from stages.trainer.hardware import Hardware
from stages.trainer.recipe import resolve

SMALL = llama(4096, 4, 4, 32, 512)
LARGE = llama(32000, 32, 32, 128, 2048)
HOST = 125 * 2**30
H100 = Hardware("cuda", "NVIDIA H100 80GB HBM3", 80 * 2**30, True, HOST, (9, 0))
CPU = Hardware("cpu", "2 threads", 16 * 2**30, False, 16 * 2**30)
WANTED = load_params().trainer


def wanted(**switches):
    return WANTED.model_copy(update=switches)


@given(st.integers(1, 300), st.sampled_from([CPU, H100]), st.sampled_from([128, 512, 4096]))
def test_the_batch_is_the_same_on_every_machine(batch_rows, hardware, row_tokens):
    recipe = resolve(hardware, SMALL, batch_rows, row_tokens, WANTED)
    assert recipe.micro_batch * recipe.accumulation == batch_rows


def test_little_memory_means_more_accumulation_and_then_recomputation():
    plenty = resolve(H100, SMALL, 64, 512, WANTED)
    small = resolve(Hardware("cuda", "small", 2**30, True, HOST, (9, 0)), SMALL, 64, 512, WANTED)
    assert small.accumulation > plenty.accumulation == 1
    tight = resolve(H100, llama(32000, 26, 28, 128, 16384), 1, 16384, WANTED)
    assert tight.checkpointing == "selective", "a row of 16k tokens of a 4B model fits with it only"
    assert sum(tight.memory.values()) <= tight.room


def test_rows_enough_to_keep_a_gpu_busy_are_worth_recomputation():
    recipe = resolve(replace(H100, memory=11 * 2**30), llama(32000, 8, 24, 128, 2048), 16, 2048, WANTED)
    assert (recipe.checkpointing, recipe.micro_batch) == ("full", 16)
    assert "faster than 1 rows at a time without" in recipe.table()
    unknown = replace(H100, name="another", memory=11 * 2**30)
    assert resolve(unknown, llama(32000, 8, 24, 128, 2048), 16, 2048, WANTED).checkpointing == "none"


def test_what_does_not_fit_says_what_to_change():
    with pytest.raises(UserError, match=r"a step of one row .* needs .* GiB.*trainer\.offload to auto"):
        resolve(H100, LARGE, 8, 2048, wanted(offload="none"))
    with pytest.raises(UserError, match=r"a step of one row"):  # sophia cannot be offloaded
        resolve(H100, LARGE, 8, 2048, wanted(optimizer="sophia"))
    little = replace(H100, host=64 * 2**30)
    with pytest.raises(UserError, match=r"need 75\.3 GiB of the host's memory; there are 57\.6"):
        resolve(little, LARGE, 8, 2048, WANTED)


def test_states_go_to_the_host_where_they_fit_nowhere_else():
    assert resolve(H100, SMALL, 8, 2048, WANTED).offload == "none"
    recipe = resolve(H100, LARGE, 8, 2048, WANTED)
    assert (recipe.offload, recipe.sharding, recipe.memory["optimizer"]) == ("cpu", "none", 0)
    assert "75 of the host's 125 GiB" in recipe.table()


def test_rounding_by_chance_leaves_nothing_to_keep_on_the_host():
    with pytest.raises(UserError, match="stochastic_rounding: bf16 weights have no fp32 ones"):
        resolve(H100, LARGE, 8, 2048, wanted(stochastic_rounding=True))


def test_deepspeeds_offload_counts_what_it_keeps_besides():
    """18 bytes a parameter on the host, and 22 where it sums several micro-batches."""
    for host, each in ((256, 22), (130, 18)):
        recipe = resolve(replace(H100, count=2, host=host * 2**30), LARGE, 16, 2048, wanted(offload="cpu"))
        assert (recipe.sharding, recipe.on_host) == ("zero2", False)
        assert f"{each * LARGE.parameters / 2**30:.0f} of the host's {host} GiB" in recipe.table()
    with pytest.raises(UserError, match=r"need 113\.0 GiB of the host's memory"):
        resolve(replace(H100, count=2, host=125 * 2**30), LARGE, 16, 2048, wanted(offload="cpu"))


def test_precision_follows_the_hardware_and_every_choice_has_a_reason():
    assert resolve(H100, SMALL, 8, 512, WANTED).precision == "bf16"
    recipe = resolve(CPU, SMALL, 8, 512, WANTED)
    assert recipe.precision == "fp32"
    for line in recipe.table().splitlines():
        assert line[36:].strip(), line


def test_several_devices_divide_what_one_cannot_hold():
    two = replace(H100, count=2)
    assert resolve(two, SMALL, 8, 512, WANTED).sharding == "ddp"
    assert resolve(two, llama(32000, 24, 24, 128, 2048), 8, 2048, WANTED).sharding == "fsdp"
    assert resolve(two, SMALL, 8, 512, WANTED).micro_batch == 4
    alone = resolve(two, SMALL, 7, 512, WANTED)
    assert alone.processes == 1 and "1 of 2: among more, 7 rows a step cannot be divided" in alone.table()
    assert resolve(replace(two, count=8), SMALL, 6, 512, WANTED).processes == 6


def test_adapters_need_no_room_for_what_they_do_not_train():
    from stages.trainer import lora

    adapters = lora.parameters(LARGE, 16)
    assert adapters < LARGE.parameters / 100
    recipe = resolve(H100, LARGE, 8, 2048, WANTED, trained=adapters)
    assert (recipe.offload, recipe.sharding) == ("none", "none")


def test_fp8_needs_a_gpu_that_has_it():
    a100 = Hardware("cuda", "A100", 80 * 2**30, True, HOST, (8, 0))
    with pytest.raises(UserError, match=r"fp8 needs compute capability 8\.9"):
        resolve(a100, SMALL, 8, 512, wanted(precision="fp8"))
