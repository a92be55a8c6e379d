"""Supervised fine-tuning on packed rows is TRL's on conversations one by one, and says whether the model stops."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stages.contract.errors import UserError
from stages.contract.params import load_params
from stages.corpus.chats.encoding import pack_chats, render
from stages.corpus.tokens.vocabulary import TURN_END
from stages.scaling.shapes import Shape, llama
from stages.trainer.loop import tuning
from stages.trainer.loop.causal import prepare
from stages.trainer.loop.rows import PackedRows, collate
from stages.trainer.objectives.supervised import ChatTrainer
from stages.trainer.plan import recipe
from tests.trainer.wanted import CPU, adamw

ROW = 96
TALKS = [
    [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    for question, answer in [("Hello?", "Hey!"), ("How?", "So and so."), ("Why", "Because it is."), ("word " * 9, "Ja")]
] + [
    [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"},
    ]
]  # fmt: skip


@pytest.fixture(scope="module")
def make(tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    def model():
        torch.manual_seed(0)
        config = llama(512, heads=2, layers=2, head_dim=16, row_tokens=ROW).config()
        return LlamaForCausalLM(LlamaConfig(**config, pad_token_id=tokenizer.pad_token_id, use_cache=False))

    return model


def test_loss_and_gradient_are_those_of_trl(make, tokenizer, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows, counts = pack_chats(tokenizer, TALKS, ROW, seed=0)
    assert counts["cut"] == 0 and len(rows.tokens) < len(TALKS)
    dataset, ours, theirs = PackedRows(rows), make(), make()
    shape = Shape.of(ours.config.to_dict())
    prepare(ours, recipe.resolve(CPU, shape, len(dataset), ROW, load_params().trainer))
    loss = ours(**collate([dataset[i] for i in range(len(dataset))])).loss
    loss.backward()
    trainer = SFTTrainer(
        model=theirs, processing_class=tokenizer, train_dataset=Dataset.from_list([{"messages": t} for t in TALKS]),
        args=SFTConfig(
            output_dir=str(tmp_path), max_length=ROW, assistant_only_loss=True, use_cpu=True, bf16=False, report_to=[],
            gradient_checkpointing=False,
        ),
    )  # fmt: skip
    theirs.train()
    expected = trainer.compute_loss(theirs, trainer.data_collator(list(trainer.train_dataset)))
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("optimizer", ["adam_mini", "shampoo"])
def test_optimizers_that_cannot_train_adapters_are_refused(optimizer):
    params = load_params()
    chosen = recipe.resolve(CPU, llama(512, 2, 2, 16, ROW), 4, ROW, adamw(optimizer=optimizer), trained=100)
    adapters = params.sft.model_copy(update={"lora_rank": 8})
    work = tuning.TuneWork(SimpleNamespace(params=params), "sft", Path("out/pretrain"), [], 4, adapters)
    with pytest.raises(UserError, match=f"^sft.lora_rank: trainer.optimizer {optimizer} cannot train adapters"):
        tuning._refuse(work, chosen)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_log_has_the_probability_of_the_end_of_turn(make, tokenizer, tmp_path, accumulation):
    """At every step as the plain model says it, conversation by conversation, before the step; and it is learned."""
    from transformers import TrainingArguments

    rows, _ = pack_chats(tokenizer, TALKS, ROW, seed=0)
    dataset, model, plain, stop = PackedRows(rows), make(), make(), tokenizer.convert_tokens_to_ids(TURN_END)
    whole = recipe.resolve(CPU, Shape.of(model.config.to_dict()), len(dataset), ROW, load_params().trainer)
    chosen = dataclasses.replace(whole, micro_batch=-(-len(dataset) // accumulation), accumulation=accumulation)
    options = chosen.arguments() | {
        "output_dir": str(tmp_path), "max_steps": 30, "learning_rate": 1e-2, "logging_steps": 1, "report_to": [],
        "save_strategy": "no", "disable_tqdm": True, "remove_unused_columns": False, "seed": 0,
    }  # fmt: skip
    trainer = ChatTrainer(model, stop, recipe=chosen, train_dataset=dataset, args=TrainingArguments(**options))
    trainer.train()
    log = [entry["stop_probability"] for entry in trainer.state.log_history if "loss" in entry]
    due = []
    for talk in TALKS:
        ids, written = render(tokenizer, talk)
        with torch.inference_mode():
            p = plain(torch.tensor([ids])).logits[0].softmax(-1)
        due += [float(p[at - 1, stop]) for at in written if ids[at] == stop]
    assert len(due) == len(TALKS) + 1
    assert log[0] == pytest.approx(sum(due) / len(due), rel=1e-4)
    assert log[-1] > 10 * log[0]
