from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contract.errors import UserError
from stages.scaling.shapes import llama
from stages.trainer.model import attention
from stages.trainer.plan.hardware import Hardware
from stages.trainer.plan.recipe import resolve
from tests.trainer.wanted import CPU, adamw

SMALL = llama(4096, 4, 4, 32, 512)
LARGE = llama(32000, 32, 32, 128, 2048)
HOST = 125 * 2**30
H100 = Hardware("cuda", "NVIDIA H100 80GB HBM3", 80 * 2**30, True, HOST, (9, 0))
WANTED = adamw()


@given(st.integers(1, 300), st.sampled_from([CPU, H100]), st.sampled_from([128, 512, 4096]))
def test_the_batch_is_the_same_on_every_machine(batch_rows, hardware, row_tokens):
    recipe = resolve(hardware, SMALL, batch_rows, row_tokens, WANTED)
    assert recipe.micro_batch * recipe.accumulation == batch_rows


def test_little_memory_means_accumulation_then_recomputation():
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
        resolve(H100, LARGE, 8, 2048, adamw(offload="none"))
    with pytest.raises(UserError, match=r"a step of one row"):  # sophia cannot be offloaded
        resolve(H100, LARGE, 8, 2048, adamw(optimizer="sophia"))
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
        resolve(H100, LARGE, 8, 2048, adamw(stochastic_rounding=True))


def test_deepspeeds_offload_counts_what_it_keeps_besides():
    """18 bytes a parameter on the host, and 22 where it sums several micro-batches."""
    for host, each in ((256, 22), (130, 18)):
        recipe = resolve(replace(H100, count=2, host=host * 2**30), LARGE, 16, 2048, adamw(offload="cpu"))
        assert (recipe.sharding, recipe.on_host) == ("zero2", False)
        assert f"{each * LARGE.parameters / 2**30:.0f} of the host's {host} GiB" in recipe.table()
    with pytest.raises(UserError, match=r"need 113\.0 GiB of the host's memory"):
        resolve(replace(H100, count=2, host=125 * 2**30), LARGE, 16, 2048, adamw(offload="cpu"))


def test_precision_follows_hardware_and_choices_have_reasons():
    assert resolve(H100, SMALL, 8, 512, WANTED).precision == "bf16"
    recipe = resolve(CPU, SMALL, 8, 512, WANTED)
    assert recipe.precision == "fp32"
    for line in recipe.table().splitlines():
        assert line[36:].strip(), line


def test_reasons_are_those_of_what_was_decided():
    lines = resolve(CPU, SMALL, 8, 512, WANTED).table().splitlines()
    assert "  compile        none                 on a CPU compiled layers have not been shown to give" in lines[3]
    assert lines[4].split() == ["kernels", "torch", "PyTorch's"]
    lines = resolve(CPU, SMALL, 8, 512, adamw(compile="layers")).table().splitlines()
    assert (lines[3].split(), lines[4].split()[-1]) == (["compile", "layers", "as", "asked"], "inductor's")
    lines = resolve(H100, SMALL, 8, 512, adamw(kernels="liger")).table().splitlines()
    assert lines[4].split() == ["kernels", "liger", "as", "asked"]


@pytest.mark.parametrize("precision", ["fp8", "fp8_rowwise", "int8"])
def test_formats_that_a_cpu_would_emulate_are_refused(precision):
    with pytest.raises(UserError, match=rf"^trainer.precision: {precision} needs a GPU. Here: auto, fp32 or bf16.$"):
        resolve(CPU, SMALL, 8, 512, adamw(precision=precision))


def test_a_cpu_with_fast_bf16_uses_it_for_models_that_gain():
    fast, tiny = replace(CPU, bf16=True), llama(2048, 1, 2, 32, 512)
    assert resolve(fast, SMALL, 8, 512, WANTED).precision == "bf16"
    assert resolve(fast, tiny, 8, 512, WANTED).precision == "fp32"
    assert "gains nothing on a CPU below" in resolve(fast, tiny, 8, 512, WANTED).table()


def test_flash4_that_cannot_be_imported_gives_way_to_flex(monkeypatch, tmp_path):
    package = tmp_path / "flash_attn" / "cute"
    package.mkdir(parents=True)
    (package / "interface.py").write_text("import cutlass.that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    attention.unusable.cache_clear()
    attention.runs.cache_clear()
    try:
        recipe = resolve(H100, SMALL, 8, 512, WANTED)
        assert recipe.attention == "flex"
        assert "fails: ModuleNotFoundError: No module named 'cutlass'" in recipe.table()
        with pytest.raises(UserError, match=r"needs the package .* cannot be imported: ModuleNotFoundError"):
            resolve(H100, SMALL, 8, 512, adamw(attention="flash4"))
    finally:
        attention.unusable.cache_clear()
        attention.runs.cache_clear()


def test_several_devices_divide_what_one_cannot_hold():
    two = replace(H100, count=2)
    assert resolve(two, SMALL, 8, 512, WANTED).sharding == "ddp"
    assert resolve(two, llama(32000, 24, 24, 128, 2048), 8, 2048, WANTED).sharding == "fsdp"
    assert resolve(two, SMALL, 8, 512, WANTED).micro_batch == 4
    alone = resolve(two, SMALL, 7, 512, WANTED)
    assert alone.processes == 1 and "1 of 2: among more, 7 rows a step cannot be divided" in alone.table()
    assert resolve(replace(two, count=8), SMALL, 6, 512, WANTED).processes == 6


def test_adapters_need_no_room_for_what_they_do_not_train():
    from stages.trainer.model import lora

    adapters = lora.parameters(LARGE, 16)
    assert adapters < LARGE.parameters / 100
    recipe = resolve(H100, LARGE, 8, 2048, WANTED, trained=adapters)
    assert (recipe.offload, recipe.sharding) == ("none", "none")


def test_fp8_needs_a_gpu_that_has_it():
    a100 = Hardware("cuda", "A100", 80 * 2**30, True, HOST, (8, 0))
    with pytest.raises(UserError, match=r"fp8 needs compute capability 8\.9"):
        resolve(a100, SMALL, 8, 512, adamw(precision="fp8"))
