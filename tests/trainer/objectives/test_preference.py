"""Packed preference optimization is TRL's, pair by pair."""

import copy
import dataclasses
import types

import numpy as np
import pytest
import torch

from stages.corpus.chats.encoding import pack_pairs
from stages.scaling.shapes import Shape
from stages.trainer.loop.causal import prepare
from stages.trainer.loop.export import release
from stages.trainer.loop.rows import PackedRows, collate
from stages.trainer.model import lora
from stages.trainer.objectives.preference import (
    PreferenceTrainer,
    answer_logps,
    head_logps,
    losses,
    pair_forward,
    paired,
    reference_logps,
)
from stages.trainer.plan import recipe
from tests.trainer.toy import _tokenizer, preference
from tests.trainer.wanted import CPU, adamw

ROW = 64
LOSSES = ("sigmoid", "hinge", "ipo", "robust", "apo_zero", "apo_down")


class Pads:
    """What packing asks of a tokenizer."""

    pad_token_id = 1

    def __len__(self):
        return 128


def chosen_recipe(model, rows):
    shape = Shape.of(model.config.to_dict())
    return recipe.resolve(CPU, shape, len(rows), ROW, adamw())


def packed(pairs, reference):
    rows = pack_pairs(Pads(), pairs, ROW, seed=0)
    dataset = PackedRows(rows)
    logps = reference_logps(reference, dataset, chosen_recipe(reference, dataset))
    return paired(rows, logps)


def test_every_pair_is_in_one_row_with_its_answers_labeled(pairs):
    rows = pack_pairs(Pads(), pairs, ROW, seed=0)
    assert rows.pairs.sum() == len(pairs)
    wanted = {(tuple(p.chosen), tuple(p.rejected)) for p in pairs}
    for tokens, ends, labels, count in zip(rows.tokens, rows.cu_seqlens, rows.labels, rows.pairs, strict=True):
        for k in range(count):
            a, b, c = (int(x) for x in ends[2 * k : 2 * k + 3])
            found = tuple(tokens[a:b]), tuple(tokens[b:c])
            pair = next(p for p in pairs if (tuple(p.chosen), tuple(p.rejected)) == found)
            wanted.discard(found)
            assert np.flatnonzero(labels[a:b] >= 0).tolist() == pair.chosen_positions.tolist()
            assert np.flatnonzero(labels[b:c] >= 0).tolist() == pair.rejected_positions.tolist()
        assert (labels[ends[2 * count] :] == -100).all()
    assert not wanted


def test_log_probabilities_are_those_of_each_answer_alone(pairs, tiny):
    dataset = PackedRows(pack_pairs(Pads(), pairs, ROW, seed=0))
    model, plain = tiny(), tiny()
    prepare(model, chosen_recipe(model, dataset), answer_logps, head_logps)
    for i in range(len(dataset)):
        found, counts = model(**collate([dataset[i]]))
        for k, (a, b) in enumerate(zip(dataset.rows.cu_seqlens[i], dataset.rows.cu_seqlens[i][1:], strict=False)):
            labels = torch.from_numpy(dataset.rows.labels[i][a:b].astype(np.int64))[None]
            ids = torch.from_numpy(dataset.rows.tokens[i][a:b].astype(np.int64))[None]
            if (labels >= 0).any():
                loss = plain(input_ids=ids, labels=labels).loss
                assert counts[0, k] == (labels >= 0).sum()
                torch.testing.assert_close(found[0, k], -loss * counts[0, k], atol=1e-4, rtol=1e-5)
            else:
                assert found[0, k] == counts[0, k] == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_are_those_of_trl(pairs, tiny, reference, tmp_path, loss):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    smoothing = 0.2 if loss == "robust" else 0.0
    dataset = packed(pairs, reference)
    ours = tiny()
    ours.preference = preference(loss, 0.3, smoothing)
    prepare(ours, chosen_recipe(ours, dataset), pair_forward, head_logps)
    output = ours(**collate([dataset[i] for i in range(len(dataset))]))
    output["loss"].backward()

    def example(pair):
        start = int(pair.chosen_positions[0])
        return {
            "prompt_ids": pair.chosen[:start], "chosen_ids": pair.chosen[start:], "rejected_ids": pair.rejected[start:],
        }  # fmt: skip

    tokenizer = _tokenizer()
    tokenizer.pad_token, tokenizer.eos_token = "b", "a"
    theirs = tiny()
    text = [{"prompt": "a", "chosen": "b", "rejected": "a"}]
    trainer = DPOTrainer(
        model=theirs, ref_model=_copy(reference), processing_class=tokenizer, train_dataset=Dataset.from_list(text),
        args=DPOConfig(
            output_dir=str(tmp_path), beta=0.3, loss_type=[loss], label_smoothing=smoothing, use_cpu=True, bf16=False,
            report_to=[], gradient_checkpointing=False,
        ),
    )  # fmt: skip
    theirs.train()
    batch = trainer.data_collator([example(pair) for pair in pairs])
    expected = trainer._compute_loss(theirs, batch, False)
    expected.backward()
    torch.testing.assert_close(output["loss"], expected, atol=1e-5, rtol=1e-5)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_the_reference_survives_a_cast_of_the_batch_to_bf16(pairs, tiny, reference):
    """As FSDP2 and DeepSpeed do it."""
    dataset = packed(pairs, reference)
    model = tiny()
    model.preference = preference("sigmoid", 0.3)
    prepare(model, chosen_recipe(model, dataset), pair_forward, head_logps)
    batch = collate([dataset[i] for i in range(len(dataset))])
    cast = {n: x.bfloat16() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for n, x in batch.items()}
    assert torch.equal(model(**cast)["loss"], model(**batch)["loss"])


def test_without_a_reference_losses_are_those_of_trl():
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 30, (7, 2), generator=draw).float()
    logps = -torch.rand(7, 2, generator=draw) * 5 * lengths
    mean = (logps / lengths).unbind(-1)
    cpu = types.SimpleNamespace(device=torch.device("cpu"))
    theirs = types.SimpleNamespace(
        loss_type="simpo", beta=2.0, simpo_gamma=0.5, label_smoothing=0.0, alpha=0.0, accelerator=cpu
    )
    expected = CPOTrainer.cpo_loss(theirs, *mean)[0]
    torch.testing.assert_close(losses(preference("simpo", 2.0, gamma=0.5), logps, logps, lengths), expected)
    odds = ORPOTrainer.odds_ratio_loss(types.SimpleNamespace(beta=0.1, accelerator=cpu), *mean)[0]
    # Eq. 6: the loss of the chosen answer, which TRL takes over the prompt as well, less what is subtracted there.
    torch.testing.assert_close(losses(preference("orpo", 0.1), logps, logps, lengths), -mean[0] - odds)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("loss", [*LOSSES, "simpo", "orpo"])
def test_every_objective_is_learned_with_and_without_adapters(pairs, tiny, tmp_path, loss, rank):
    log = trained(pairs, tiny, tmp_path, preference(loss, 0.5, 0.1 * (loss == "robust"), 0.5), 1, rank)
    assert log[-1]["loss"] < log[0]["loss"]


def trained(pairs, tiny, tmp_path, preference, accumulation, rank=0, reference=None):
    """The log of a few steps over all pairs, in so many micro-batches, from ``reference`` or the model itself."""
    from transformers import TrainingArguments

    model, dataset = tiny(), packed(pairs, copy.deepcopy(reference) if reference else tiny())
    if rank:
        lora.inject(model, rank)
    chosen = dataclasses.replace(
        chosen_recipe(model, dataset), micro_batch=-(-len(dataset) // accumulation), accumulation=accumulation
    )
    options = chosen.arguments() | {
        "output_dir": str(tmp_path), "max_steps": 12, "learning_rate": 1e-2, "logging_steps": 1, "report_to": [],
        "save_strategy": "no", "disable_tqdm": True, "remove_unused_columns": False, "seed": 0,
    }  # fmt: skip
    trainer = PreferenceTrainer(
        model, preference, recipe=chosen, train_dataset=dataset, args=TrainingArguments(**options)
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_the_trainer_learns_which_answer_was_chosen(pairs, tiny, tmp_path):
    """And says so in every log, of all pairs of the step however it is cut into micro-batches."""
    whole, parts = (trained(pairs, tiny, tmp_path, preference("sigmoid", 0.5), n) for n in (1, 2))
    assert whole[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert whole[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert whole[-1]["rewards/accuracies"] == 1 and whole[-1]["rewards/margins"] > 0.1
    for a, b in zip(whole, parts, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-3)
        assert a["logps/chosen"] == pytest.approx(b["logps/chosen"], rel=1e-3)


def test_every_log_says_how_far_the_model_is_from_the_reference(pairs, tiny, reference, tmp_path):
    """Of the first step, by hand: the model is ``tiny``, the reference another."""
    (first, *_) = trained(pairs, tiny, tmp_path, preference("sigmoid", 0.5), 2, reference=reference)
    dataset = packed(pairs, copy.deepcopy(reference))
    recipe_of = chosen_recipe(tiny(), dataset)
    ours, theirs = (reference_logps(m, PackedRows(dataset.rows), recipe_of) for m in (tiny(), reference))
    moved, lengths = [], []
    for row, count in enumerate(dataset.rows.pairs):
        for k in range(2 * count):
            a, b = dataset.rows.cu_seqlens[row, k : k + 2]
            moved.append(ours[row, k] - theirs[row, k])
            lengths.append((dataset.rows.labels[row, a + 1 : b] >= 0).sum())
    moved, lengths = np.array(moved).reshape(-1, 2), np.array(lengths).reshape(-1, 2)
    drift = (moved / lengths).mean(0)
    assert abs(drift).max() > 1e-3
    assert first["drift/chosen"] == pytest.approx(drift[0], abs=1e-4)
    assert first["drift/rejected"] == pytest.approx(drift[1], abs=1e-4)
    assert first["kl"] == pytest.approx((moved**2 / 2 / lengths).mean(), rel=1e-3)


def _copy(model):
    plain = copy.deepcopy(model)
    release(plain)
    return plain
