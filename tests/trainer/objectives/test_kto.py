"""KTO over packed pairs is TRL's on their answers one by one, with the same mismatched ones."""

import copy
import dataclasses
from itertools import pairwise

import pytest
import torch

from stages.corpus.chats.encoding import pack_pairs
from stages.trainer.loop.rows import PackedRows
from stages.trainer.model import lora
from stages.trainer.objectives.kto import KtoRows, KtoTrainer, collate_both, mismatched, with_mismatched
from stages.trainer.objectives.preference import paired, reference_logps
from tests.trainer.objectives.test_preference import ROW, Pads, chosen_recipe
from tests.trainer.toy import _tokenizer, preference
from tests.trainer.wanted import adamw

BETA = 0.3


@pytest.fixture
def rows(pairs, reference):
    packed = pack_pairs(Pads(), pairs, ROW, seed=0)
    both = []
    for kind in (packed, mismatched(packed)):
        dataset = PackedRows(kind)
        logps = reference_logps(copy.deepcopy(reference), dataset, chosen_recipe(reference, dataset))
        both.append(paired(kind, logps))
    return KtoRows(*both)


def trainer(model, rows, tmp_path, accumulation=1, **options):
    from transformers import TrainingArguments

    chosen = chosen_recipe(model, rows)
    size = -(-len(rows) // accumulation)
    chosen = dataclasses.replace(chosen, micro_batch=size, accumulation=accumulation)
    options = chosen.arguments() | {
        "output_dir": str(tmp_path), "max_steps": 6, "learning_rate": 3e-3, "logging_steps": 1, "report_to": [],
        "save_strategy": "no", "disable_tqdm": True, "remove_unused_columns": False, "seed": 0,
    } | options  # fmt: skip
    return KtoTrainer(
        model, preference("kto", BETA), recipe=chosen, train_dataset=rows, args=TrainingArguments(**options)
    )


def test_loss_and_gradient_are_those_of_trl(rows, tiny, reference, tmp_path):
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    ours, theirs = tiny(), tiny()
    mine = trainer(ours, rows, tmp_path)
    batches, pairs = mine.get_batch_samples(iter([collate_both(list(rows))]), 1, "cpu")
    loss = mine.compute_loss(ours, batches[0], num_items_in_batch=pairs)
    loss.backward()
    tokenizer = _tokenizer()
    tokenizer.pad_token, tokenizer.eos_token = "b", "a"
    text = [{"prompt": "a", "completion": "b", "label": label} for label in (True, False)]
    judge = KTOTrainer(
        model=theirs, ref_model=reference, processing_class=tokenizer, train_dataset=Dataset.from_list(text),
        args=KTOConfig(
            output_dir=str(tmp_path), beta=BETA, use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False,
            per_device_train_batch_size=2, max_length=None,
        ),
    )  # fmt: skip
    theirs.train()
    expected = judge._compute_loss(theirs, judge.data_collator(list(examples(rows))), False)
    expected.backward()
    kl = judge._metrics["train"]["kl"][0]
    assert kl > 0.01, "or the reference point is not seen to matter"
    assert mine.points[0] == pytest.approx(kl, rel=1e-4)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def examples(rows):
    """TRL's, of every answer."""
    for r, pairs in enumerate(rows.rows.pairs):
        own, other = (list(_split(kind.rows, r)) for kind in (rows, rows.others))
        for k in range(2 * pairs):
            (prompt, answer), (same, foreign) = own[k], other[k]
            assert prompt == same and answer != foreign
            yield {"prompt_ids": prompt, "completion_ids": answer, "KL_completion_ids": foreign, "label": k % 2 == 0}


def _split(rows, r):
    bounds = rows.cu_seqlens[r][: 2 * rows.pairs[r] + 1]
    for a, b in pairwise(bounds):
        start = a + int((rows.labels[r][a:b] >= 0).argmax())
        yield rows.tokens[r][a:start].tolist(), rows.tokens[r][start:b].tolist()


@pytest.mark.parametrize("rank", [0, 4])
def test_micro_batches_keep_the_reference_point_and_the_loss(rows, tiny, tmp_path, rank):
    """With and without adapters."""
    logs = []
    for accumulation in (1, 2):
        model = tiny()
        if rank:
            lora.inject(model, rank)
        run = trainer(model, rows, tmp_path, accumulation)
        run.train()
        logs.append([entry for entry in run.state.log_history if "loss" in entry])
    whole, parts = logs
    assert whole[-1]["loss"] < whole[0]["loss"]
    for a, b in zip(whole, parts, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
        assert a["reference_point"] == pytest.approx(b["reference_point"], abs=1e-3)


def test_the_model_that_training_starts_from_is_asked_once(pairs, reference, tmp_path):
    """Of itself it differs in nothing: before the first step the reference point is 0."""
    reference.save_pretrained(tmp_path)
    _tokenizer().save_pretrained(tmp_path)
    packed = pack_pairs(Pads(), pairs, ROW, seed=0)
    rows = paired(
        packed, reference_logps(copy.deepcopy(reference), PackedRows(packed), chosen_recipe(reference, packed.tokens))
    )
    wanted, kept = adamw(), tmp_path / "mismatched.npy"
    both = with_mismatched(rows, tmp_path, wanted, kept)
    run = trainer(reference, both, tmp_path / "run")
    batches, pairs_ = run.get_batch_samples(iter([collate_both(list(both))]), 1, "cpu")
    assert run.points[0] == pytest.approx(0, abs=1e-6)
    loss = run.compute_loss(reference, batches[0], num_items_in_batch=pairs_)
    assert float(loss.detach()) == pytest.approx(0.5, abs=1e-6)
    written = kept.stat().st_mtime_ns
    with_mismatched(rows, tmp_path, wanted, kept)
    assert kept.stat().st_mtime_ns == written
