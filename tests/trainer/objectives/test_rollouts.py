"""GRPO and RLOO learn from rewarded answers as their papers say, and stop and go on as every stage does."""

import dataclasses
import os
import signal

import numpy as np
import pytest
import torch

from stages.contract import Run, UserError
from stages.contract.errors import Preempted
from stages.contract.params import load_params
from stages.contract.tracking.spool import NoSpool
from stages.corpus.chats.encoding import encode_pair, pack_pairs
from stages.corpus.tokens.vocabulary import TURN_END
from stages.scaling.shapes import llama
from stages.trainer.loop.history import last_step
from stages.trainer.loop.tuning import TuneWork, tune
from stages.trainer.objectives import rewards, rollouts

ROW = 64
SUMS = [("one and two", "that is 3"), ("2 and 2", "4"), ("say hello", "hello you"), ("nine less one", "8 of 9 are 8")]


@pytest.fixture(scope="module")
def start(tokenizer, tmp_path_factory):
    """The folder of a tiny model that ends its turns."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = llama(len(tokenizer), heads=2, layers=2, head_dim=16, row_tokens=ROW).config()
    model = LlamaForCausalLM(LlamaConfig(**config, pad_token_id=tokenizer.pad_token_id))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(TURN_END)]
    folder = tmp_path_factory.mktemp("start")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def packed(tokenizer):
    records = [
        {
            "prompt": [_says("user", asked)],
            "chosen": [_says("assistant", answer)],
            "rejected": [_says("assistant", "no")],
        }
        for asked, answer in SUMS
    ]
    return pack_pairs(tokenizer, [encode_pair(tokenizer, record, ROW - 1) for record in records], 2 * ROW, seed=0)


def _says(role, content):
    return {"role": role, "content": content}


def chosen(**changes):
    """params.yaml's, with these of `dpo`."""
    params = load_params()
    small = {"batch_pairs": 8, "generations": 4, "answer_tokens": 6, "epochs": 2, "learning_rate": 3e-3}
    return params.model_copy(update={"dpo": params.dpo.model_copy(update=small | changes)})


def trained(params, start, packed, tokenizer, folder, **changes):
    """The log of `tune` into ``folder``."""
    for name in ("out", "reports", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    params = params.model_copy(update={"trainer": rollouts.by_trl(params.trainer)})
    run = Run("dpo", params, folder / "out", folder / "reports", folder / "scratch", NoSpool())
    asked, _ = rollouts.prompts(packed, tokenizer, ROW, params.dpo, params.seed)
    work = TuneWork(run, "dpo", start, asked, params.dpo.batch_pairs, params.dpo, answer_bytes=1)

    def make(*args, **kwargs):
        kwargs["recipe"] = dataclasses.replace(kwargs["recipe"], **changes)
        return rollouts.trainer(params.dpo, *args, **kwargs)

    return tune(work, make, lambda **common: rollouts.rollout_arguments(params.dpo, **common))


def test_what_pairs_ask_and_what_was_chosen(packed, tokenizer):
    asked, left_out = rollouts.prompts(packed, tokenizer, ROW, chosen(epochs=1).dpo, seed=0)
    found = {tokenizer.decode(row["prompt"]): row["answer"] for row in asked.data}
    assert found == {f"<|im_start|>user\n{ask}<|im_end|>\n<|im_start|>assistant\n": answer for ask, answer in SUMS}
    assert left_out == 0
    assert asked.row_tokens == 6 + max(len(row["prompt"]) for row in asked.data)


def test_by_number_only_pairs_with_a_number_are_asked(packed, tokenizer):
    asked, left_out = rollouts.prompts(packed, tokenizer, ROW, chosen(reward="number").dpo, seed=0)
    assert left_out == 1
    assert {row["answer"] for row in asked.data} == {answer for _, answer in SUMS} - {"hello you"}


def test_a_long_prompt_loses_its_left_part(packed, tokenizer):
    whole, _ = rollouts.prompts(packed, tokenizer, ROW, chosen(epochs=1).dpo, seed=0)
    asked, _ = rollouts.prompts(packed, tokenizer, 16, chosen(epochs=1).dpo, seed=0)
    assert asked.row_tokens == 16
    for short, row in zip(asked.data, whole.data, strict=True):
        assert short["prompt"] == row["prompt"][-10:]


def test_every_epoch_asks_everything_in_another_order():
    at = rollouts.order(6, 3, 2, seed=1).reshape(3, 6)
    assert all(sorted(epoch) == list(range(6)) for epoch in at.tolist())
    assert len({tuple(epoch) for epoch in at.tolist()}) == 3
    assert len(rollouts.order(7, 0.5, 2, seed=1)) == 4 and len(rollouts.order(3, 1, 8, seed=1)) == 8


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"generations": 3}, "dpo.batch_pairs is 8; it must be a multiple of dpo.generations (3). Use 9."),
        ({"answer_tokens": ROW}, f"dpo.answer_tokens: {ROW} leave no room for a prompt; the model reads {ROW}."),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_loaded(packed, tokenizer, change, says):
    with pytest.raises(UserError) as error:
        rollouts.prompts(packed, tokenizer, ROW, chosen(**change).dpo, seed=0)
    assert str(error.value).startswith(says)


def test_by_number_without_a_number_is_refused(packed, tokenizer):
    silent = packed._replace(labels=np.where(packed.labels >= 0, tokenizer.convert_tokens_to_ids("a"), packed.labels))
    silent = silent._replace(tokens=np.where(packed.labels >= 0, silent.labels, packed.tokens).astype(np.uint16))
    with pytest.raises(UserError, match="none of the 4 chosen answers holds one"):
        rollouts.prompts(silent, tokenizer, ROW, chosen(reward="number").dpo, seed=0)


@pytest.mark.parametrize(("name", "value"), [("precision", "fp8"), ("sharding", "zero3"), ("offload", "cpu")])
def test_a_recipe_that_generation_cannot_follow_is_refused(name, value):
    with pytest.raises(UserError, match=f"trainer.{name}: {value} cannot be had"):
        rollouts.by_trl(load_params().trainer.model_copy(update={name: value}))


@pytest.fixture
def first_step(start, packed, tokenizer, tmp_path):
    """loss -> (trainer, its first micro-batch with rewarded answers, the rewards, the loss), of a fresh model."""

    def make(loss):
        from transformers import AutoModelForCausalLM, TrainingArguments

        from stages.trainer.loop import fit
        from stages.trainer.model import models
        from stages.trainer.plan import hardware, recipe

        params = chosen(loss=loss, batch_pairs=16).dpo
        asked, _ = rollouts.prompts(packed, tokenizer, ROW, params, seed=0)
        given = recipe.resolve(
            hardware.detect_hardware(), models.shape(start), 16, ROW, rollouts.by_trl(load_params().trainer)
        )
        given = dataclasses.replace(given, micro_batch=16, accumulation=1)
        run = Run("dpo", load_params(), tmp_path, tmp_path, tmp_path, NoSpool())
        args = rollouts.rollout_arguments(params, **fit.training_arguments(run, 1e-3, 0.1), **given.arguments())
        assert isinstance(args, TrainingArguments)
        model = AutoModelForCausalLM.from_pretrained(start)
        trainer = rollouts.trainer(params, model, tokenizer, given, asked, args)
        model.train()
        trainer.current_gradient_accumulation_steps = 1
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        return trainer, batch, trainer.compute_loss(model, batch)

    return make


def log_probabilities(model, batch):
    """fp32 [B, C] of each answer's tokens, every answer by itself; 0 behind its end."""
    found = torch.zeros(batch["completion_ids"].shape)
    for i, (prompt, asked, answer, there) in enumerate(
        zip(*(batch[k] for k in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")), strict=True)
    ):
        prompt, answer = prompt[asked.bool()], answer[there.bool()]
        logits = model(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
        found[i, : len(answer)] = logits.log_softmax(-1).gather(1, answer[:, None]).squeeze(1)
    return found


def groups(batch, trainer, tokenizer):
    """Of each prompt: the places of its answers in the batch, and their rewards by hand."""
    answers = {tuple(row["prompt"]): row["answer"] for row in trainer.train_dataset}
    found = {}
    for i, (prompt, asked) in enumerate(zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)):
        text = tokenizer.decode(batch["completion_ids"][i], skip_special_tokens=True)
        ids = tuple(prompt[asked.bool()].tolist())
        found.setdefault(ids, []).append((i, rewards.overlap(text, answers[ids])))
    return [zip(*group, strict=True) for group in found.values()]


@pytest.mark.parametrize("loss", ["grpo", "rloo"])
def test_advantages_loss_and_gradient_are_those_of_the_papers(first_step, start, tokenizer, monkeypatch, loss):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(
        rewards, "overlap", lambda answer, chosen: len(answer) % 5 / 4
    )  # an untrained model hits no word
    monkeypatch.setitem(rewards.RULES, "overlap", rewards.overlap)
    trainer, batch, found = first_step(loss)
    found.backward()
    expected = torch.zeros(16)
    for places, rewarded in groups(batch, trainer, tokenizer):
        assert len(places) == 4
        r = torch.tensor(rewarded)
        if loss == "grpo":  # eq. 3 and the text below it
            expected[list(places)] = (r - r.mean()) / (r.std() + 1e-4)
        else:  # leave-one-out, arXiv:2402.14740, eq. 7
            expected[list(places)] = r - (r.sum() - r) / 3
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(batch["advantages"], expected, atol=1e-4, rtol=1e-4)
    plain = AutoModelForCausalLM.from_pretrained(start)
    logps, there = log_probabilities(plain, batch), batch["completion_mask"]
    ratio = (logps - logps.detach()).exp()  # 1, before the first step; and the KL and its gradient are 0
    if loss == "grpo":
        by_hand = -((ratio * expected[:, None] * there).sum(1) / there.sum(1)).mean()
    else:
        by_hand = -((logps - logps.detach()).sum(1).exp() * expected).mean()
    by_hand.backward()
    torch.testing.assert_close(found, by_hand, atol=1e-5, rtol=1e-4)
    for (name, a), b in zip(trainer.model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("loss", ["grpo", "rloo"])
def test_every_objective_trains_with_and_without_adapters(start, packed, tokenizer, tmp_path, loss, rank):
    from transformers import AutoModelForCausalLM

    params = chosen(loss=loss, lora_rank=rank)
    log = trained(params, start, packed, tokenizer, tmp_path, micro_batch=4, accumulation=2)
    entries = [entry for entry in log if "loss" in entry]
    assert last_step(log) == len(entries) == 4
    for entry in entries:
        assert 0 <= entry["reward"] <= 1 and 0 <= entry["stopped"] <= 1 and np.isfinite(entry["kl"])
    assert entries[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert not [f for f in (tmp_path / "out").iterdir() if f.suffix in (".bin", ".pt", ".md") or "adapter" in f.name]
    before, after = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (start, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_stopped_it_ends_in_the_weights_of_an_uninterrupted_run(start, packed, tokenizer, tmp_path, monkeypatch):
    params, rule, calls = chosen(loss="grpo"), rewards.overlap, []

    def stopping(answer, chosen):
        calls.append(answer)
        if len(calls) == 3 * 8:  # in the second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return rule(answer, chosen) + len(answer) % 3

    monkeypatch.setitem(rewards.RULES, "overlap", stopping)
    with pytest.raises(Preempted, match="SIGTERM at step 3 of 4"):
        trained(params, start, packed, tokenizer, tmp_path / "stopped")
    torch.manual_seed(7)
    resumed = trained(params, start, packed, tokenizer, tmp_path / "stopped")
    assert len(calls) == 4 * 8
    whole = trained(params, start, packed, tokenizer, tmp_path / "whole")
    assert _losses(resumed) == _losses(whole)
    files = [(tmp_path / name / "out/model.safetensors").read_bytes() for name in ("stopped", "whole")]
    assert files[0] == files[1]


def _losses(log):
    """The log's steps, without the summary at its end, which is of the steps since a resume."""
    return [entry for entry in log if "loss" in entry]
