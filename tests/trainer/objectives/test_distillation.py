"""Distillation learns what the formula says, packed or not, in any chunks; and TRL's loss agrees."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.contract.errors import UserError
from stages.contract.params import load_params
from stages.scaling.shapes import Shape, llama
from stages.trainer.loop import tuning
from stages.trainer.loop.rows import PackedRows, collate
from stages.trainer.model import lora, loss
from stages.trainer.model.loss import scored_loss
from stages.trainer.objectives.distillation import (
    Distillation,
    DistillationTrainer,
    distillation_loss,
    distilled_forward,
    distilled_head,
    find_teacher,
)
from stages.trainer.plan import recipe
from tests.trainer.conftest import ROW, VOCAB
from tests.trainer.model.test_loss import case
from tests.trainer.wanted import CPU, adamw


def formula(logits, told, labels, share, temperature, items=None):
    """Of logits [B, T, V] of both models, all at once."""
    counts = labels[:, 1:] != -100
    logits, told, targets = logits[:, :-1][counts], told[:, :-1][counts], labels[:, 1:][counts]
    student, teacher = ((x / temperature).log_softmax(-1) for x in (logits, told))
    divergence = F.kl_div(student, teacher, reduction="sum", log_target=True)
    hard = F.cross_entropy(logits, targets, reduction="sum")
    return ((1 - share) * hard + share * temperature**2 * divergence) / (items or counts.sum())


def heads(vocab, seed):
    """Hidden states, head and labels of `case`, and what a wider teacher's head of as many tokens reads."""
    hidden, weight, labels = case(2, 9, vocab, 5, 0.3, seed)
    draw = torch.Generator().manual_seed(seed + 1)
    head = torch.nn.Linear(8, vocab, bias=False).requires_grad_(False)
    head.weight.normal_(generator=draw)
    return hidden, weight, labels, torch.randn(2, 9, 8, generator=draw), torch.nn.ModuleDict({"lm_head": head})


SHARES, TEMPERATURES = st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.5, 1.0, 4.0])


@settings(max_examples=30)
@given(
    st.integers(2, 17), SHARES, TEMPERATURES, st.integers(1, 200), st.sampled_from([None, 100]), st.integers(0, 2**20)
)
def test_loss_and_gradients_are_the_formulas_in_any_chunks(vocab, share, temperature, chunk, items, seed):
    hidden, weight, labels, told, teacher = heads(vocab, seed)
    expected = formula(hidden @ weight.t(), teacher.lm_head(told), labels, share, temperature, items)
    expected_gradients = torch.autograd.grad(expected, (hidden, weight))
    before, loss.CHUNK_LOGITS = loss.CHUNK_LOGITS, chunk
    try:
        actual = distillation_loss(hidden, weight, labels, items, told, Distillation(teacher, share, temperature))[0]
        with torch.no_grad():
            again = distillation_loss(hidden, weight, labels, items, told, Distillation(teacher, share, temperature))[0]
        gradients = torch.autograd.grad(actual, (hidden, weight))
    finally:
        loss.CHUNK_LOGITS = before
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again, actual)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_alone_the_divergence_is_that_of_trl(temperature):
    from trl.experimental.gkd import GKDTrainer

    hidden, weight, labels, told, teacher = heads(11, 0)
    expected = temperature**2 * GKDTrainer.generalized_jsd_loss(
        (hidden @ weight.t())[:, :-1], teacher.lm_head(told)[:, :-1], labels[:, 1:], beta=0.0, temperature=temperature
    )
    actual = distillation_loss(hidden, weight, labels, None, told, Distillation(teacher, 1.0, temperature))[0]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(*(torch.autograd.grad(x, (hidden, weight)) for x in (actual, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_with_no_share_it_is_the_plain_loss():
    hidden, weight, labels, told, teacher = heads(13, 3)
    plain, _ = scored_loss(hidden, weight, labels, 50)
    torch.testing.assert_close(
        distillation_loss(hidden, weight, labels, 50, told, Distillation(teacher, 0.0, 2.0))[0], plain
    )


@pytest.fixture
def teacher():
    """Larger than the student, of the same vocabulary, with fewer heads for keys than for queries."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = llama(VOCAB, heads=4, layers=3, head_dim=16, row_tokens=ROW).config() | {"num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**config, pad_token_id=1, use_cache=False))
    with torch.no_grad():
        model.lm_head.weight.mul_(5)  # it is sure of something
    return model


def chosen_recipe(model, rows=4, emulated="", **switches):
    shape = Shape.of(model.config.to_dict())
    chosen = recipe.resolve(CPU, shape, rows, ROW, adamw(**switches), teacher=shape)
    return dataclasses.replace(chosen, precision=emulated or chosen.precision)


def test_packed_distillation_equals_single_documents(tiny, rows, teacher):
    from stages.trainer.loop.causal import prepare

    ours, theirs = tiny(), tiny()
    batch = collate([PackedRows(rows)[i] for i in range(4)])
    expected = 0.0
    for row, ends in zip(range(4), batch["cu_seqlens"], strict=True):
        for a, b in pairwise(ends.tolist()):
            ids, labels = batch["input_ids"][row, a:b][None], batch["labels"][row, a:b][None]
            if b - a > 1 and (labels[:, 1:] != -100).any():
                with torch.no_grad():
                    told = teacher(ids).logits
                expected += formula(theirs(ids).logits, told, labels, 0.4, 2.0, items=100)
    expected.backward()
    trainer_recipe = chosen_recipe(ours)
    prepare(teacher, trainer_recipe)
    ours.distillation = Distillation(teacher.requires_grad_(False), 0.4, 2.0)
    prepare(ours, trainer_recipe, distilled_forward, distilled_head)
    actual = ours(**batch, num_items_in_batch=100).loss
    actual.backward()
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def trained(tiny, rows, teacher, tmp_path, share=0.5, accumulation=1, rank=0, **switches):
    """(trainer, losses) after 12 steps over the first 4 rows."""
    from transformers import TrainingArguments, set_seed

    set_seed(0)
    model = tiny()
    if rank:
        lora.inject(model, rank)
    chosen = chosen_recipe(model, **switches)
    chosen = dataclasses.replace(chosen, micro_batch=4 // accumulation, accumulation=accumulation)
    options = chosen.arguments() | {
        "output_dir": str(tmp_path), "max_steps": 12, "learning_rate": 1e-2, "logging_steps": 1, "report_to": [],
        "save_strategy": "no", "disable_tqdm": True, "remove_unused_columns": False, "seed": 0,
    }  # fmt: skip
    if chosen.bf16:
        teacher.bfloat16()
    trainer = DistillationTrainer(
        model, Distillation(teacher, share, 2.0), turn_end=5, recipe=chosen, train_dataset=PackedRows(rows, 4),
        args=TrainingArguments(**options),
    )  # fmt: skip
    trainer.train()
    return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("rank", [0, 4])
def test_student_comes_nearer_to_an_unchanged_teacher(tiny, rows, teacher, tmp_path, rank):
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    trainer, losses = trained(tiny, rows, teacher, tmp_path, share=1.0, rank=rank)
    assert losses[-1] < losses[0] - (0.02 if rank else 0.1)  # adapters leave the head as it is
    assert all(weight.equal(before[name]) for name, weight in teacher.state_dict().items())
    held = {name for name, _ in trainer.model.named_parameters()} | set(trainer.model.state_dict())
    assert not [name for name in held if "teacher" in name or "distillation" in name]
    assert not [p for p in teacher.parameters() if p.requires_grad or p.grad is not None]


@pytest.mark.parametrize(
    ("how", "near"),
    [({"accumulation": 2}, 1e-4), ({"checkpointing": "full"}, 1e-4),
     ({"precision": "bf16"}, 0.02), ({"emulated": "fp8"}, 0.1)],
    ids=lambda s: ",".join(map(str, s.values())) if isinstance(s, dict) else "",
)  # fmt: skip
def test_however_it_is_computed_it_is_the_same_training(tiny, rows, teacher, tmp_path, plain, how, near):
    _, losses = trained(tiny, rows, teacher, tmp_path, **how)
    assert losses == pytest.approx(plain, abs=near)


@pytest.fixture
def plain(tiny, rows, teacher, tmp_path):
    import copy

    return trained(tiny, rows, copy.deepcopy(teacher), tmp_path)[1]


def test_the_plan_counts_the_teacher_and_says_so():
    small, large = llama(4096, 4, 4, 32, 512), llama(4096, 16, 16, 128, 512)
    alone, taught = (recipe.resolve(CPU, small, 8, 512, adamw(), teacher=t) for t in (None, large))
    assert "teacher" not in alone.memory and "teacher" not in alone.table()
    assert taught.memory["teacher"] > 4 * large.parameters
    assert f"teacher {taught.memory['teacher'] / 2**30:.2f}" in taught.table()
    with pytest.raises(UserError, match=r"a step of one row .* needs 3\.\d GiB, the teacher's 3\.\d among them"):
        recipe.resolve(dataclasses.replace(CPU, memory=2**30), small, 8, 512, adamw(), teacher=large)


def test_an_optimizer_that_asks_the_model_itself_is_refused(tiny):
    work = tuning.TuneWork(None, "sft", Path("student"), None, 4, load_params().sft, Path("teacher"))
    with pytest.raises(UserError, match="sophia"):
        tuning._refuse(work, chosen_recipe(tiny(), optimizer="sophia"))


@pytest.fixture
def saved(tiny, tokenizer, tmp_path):
    """(folder of a student, function that saves a teacher like it, with another config or tokenizer)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def save(name, coder=tokenizer, **change):
        shape = llama(512, heads=2, layers=2, head_dim=16, row_tokens=ROW)
        LlamaForCausalLM(LlamaConfig(**shape.config() | change)).save_pretrained(tmp_path / name)
        coder.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save("student"), save


def test_teacher_is_a_model_with_the_same_vocabulary(saved, tmp_path):
    student, save = saved
    assert find_teacher(tmp_path / "nothing", student, ROW) is None
    assert find_teacher(save("teacher", num_hidden_layers=3), student, ROW) == tmp_path / "teacher"


def test_a_teacher_that_can_not_teach_this_student_is_refused(saved, tokenizer):
    import json

    student, save = saved
    with pytest.raises(UserError, match="vocab_size is 576 there and 512 here"):
        find_teacher(save("wide", vocab_size=576), student, ROW)
    with pytest.raises(UserError, match=f"rows have {2 * ROW} tokens, but .* positions up to {ROW}"):
        find_teacher(save("short"), student, 2 * ROW)
    other = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="another", pad_token="<|pad|>")
    with pytest.raises(UserError, match="'another' has the id 512 there and no id here"):
        find_teacher(save("other", other), student, ROW)
    swapped = save("swapped")
    path = swapped / "tokenizer.json"
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    first, second = sorted(vocab, key=vocab.get)[100:102]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"has the id 101 there and the id 100 here"):
        find_teacher(swapped, student, ROW)
    path.unlink()
    with pytest.raises(UserError, match=r"swapped holds no tokenizer\.json"):
        find_teacher(swapped, student, ROW)
    config = json.loads((swapped / "config.json").read_text())
    (swapped / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": config["vocab_size"]}))
    with pytest.raises(UserError, match=r"swapped/config\.json .+: a model of type 'gpt2' cannot be trained here"):
        find_teacher(swapped, student, ROW)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("model.safetensors", "cut", "broken/model.safetensors is damaged: .+"),
        ("tokenizer.json", "{}", "broken holds no tokenizer that can be loaded: .+"),
        ("config.json", "[]", "broken/config.json does not describe a model: .+"),
    ],
)
def test_a_broken_model_is_told_in_a_line(saved, file, content, says):
    from stages.trainer.model import models

    folder = saved[1]("broken")
    (folder / file).write_text(content)
    with pytest.raises(UserError, match=says) as error:
        models.load(folder)
    assert "\n" not in str(error.value)
