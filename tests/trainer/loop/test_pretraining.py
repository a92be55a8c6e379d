"""A whole pretraining: from a new model, from a given one, and growing; stopped between its phases, the same bytes."""

import dataclasses
import types

import numpy as np
import pytest
import torch

from stages.contract import Run
from stages.contract.params import load_params
from stages.corpus.tokens.packed_rows import Rows, save_rows
from stages.scaling.plan import Plan
from stages.scaling.shapes import Shape, llama
from stages.trainer.loop import pretraining
from stages.trainer.loop.rows import PackedRows
from stages.trainer.plan import curriculum, hardware, recipe
from tests.trainer.wanted import CPU

ROW, STEPS = 32, 8


@pytest.fixture
def work(rows, tmp_path):
    """Work over the packed rows; parameters of `pretrain` by keyword."""

    def make(scratch="scratch", logged=None, **pretrain):
        params = load_params()
        params = params.model_copy(update={"pretrain": params.pretrain.model_copy(update=pretrain)})
        spool = types.SimpleNamespace(log=lambda step, metrics: (logged if logged is not None else []).append(step))
        run = Run("pretrain", params, tmp_path / "out", tmp_path / "reports", tmp_path / scratch, spool)
        run.scratch.mkdir(exist_ok=True)
        shape = llama(128, heads=2, layers=4, head_dim=16, row_tokens=ROW)
        plan = Plan(
            model=shape.config(), parameters=shape.parameters, matmul_parameters=shape.matmul_parameters,
            tokens=STEPS * 4 * ROW, unique_tokens=STEPS * 4 * ROW, epochs=1.0, steps=STEPS, batch_rows=4,
            batch_tokens=4 * ROW, learning_rate=3e-3, flops=1.0, flops_per_token=shape.flops_per_token(ROW),
        )  # fmt: skip
        chosen = recipe.resolve(CPU, shape, 4, ROW, params.trainer)
        return pretraining.PretrainWork(run, plan, chosen, CPU, PackedRows(rows), PackedRows(rows, limit=4))

    return make


def test_held_out_rows_that_are_not_measured_decide_nothing(tmp_path, monkeypatch):
    """`python -m stages.trainer` and the stage read the same rows, so both choose the same attention."""
    monkeypatch.chdir(tmp_path)
    count = pretraining.VALIDATION_ROWS
    bounds = np.tile(np.array([0, ROW, ROW], np.int32), (count + 1, 1))
    bounds[-1, 1] = 3  # a second document, in the row after the last that is measured
    tokens, filled = np.zeros((count + 1, ROW), np.uint16), np.full(count + 1, ROW, np.int32)
    for part in ("train", "validation"):
        save_rows(Rows(tokens, bounds, filled), pretraining.PACKED / part)
    assert [rows.one_document for rows in pretraining.load_packed()] == [False, True]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(126)} | {"<|endoftext|>": 126, "<|pad|>": 127}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>", pad_token="<|pad|>")


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_depth_and_length_grow_in_one_run(work, tokenizer):
    logged = []
    trainer, history = pretraining.pretrain(
        work(logged=logged, layers_from=0.5, row_tokens_from=0.25), tokenizer, None
    )  # fmt: skip
    assert trainer.model.config.num_hidden_layers == 4
    steps = [entry["step"] for entry in history if "loss" in entry]
    assert steps == list(range(1, STEPS + 1)) == sorted(set(logged)), "the second phase counts on"
    rates = [entry["learning_rate"] for entry in history if "loss" in entry]
    peak = rates.index(max(rates))
    assert rates[peak:] == sorted(rates[peak:], reverse=True), "one schedule over both phases"


def test_stopped_in_phase_two_it_does_not_repeat_phase_one(work, tokenizer, monkeypatch):
    whole, history = pretraining.pretrain(work("whole", layers_from=0.5), tokenizer, None)
    phases, train = [], pretraining._train

    def stopped(part, model, first_step, last_step):
        if first_step:
            raise KeyboardInterrupt
        return train(part, model, first_step, last_step)

    monkeypatch.setattr(pretraining, "_train", stopped)
    with pytest.raises(KeyboardInterrupt):
        pretraining.pretrain(work("again", layers_from=0.5), tokenizer, None)
    monkeypatch.setattr(pretraining, "_train", lambda *a: (phases.append(a[2]), train(*a))[1])
    again, repeated = pretraining.pretrain(work("again", layers_from=0.5), tokenizer, None)
    assert phases == [STEPS // 2]
    assert equal(weights(whole), weights(again))
    assert repeated == history


def test_a_curriculum_goes_from_easy_to_hard_through_both_phases(work, tokenizer, monkeypatch):
    seen, given = [], PackedRows.__getitem__
    monkeypatch.setattr(PackedRows, "__getitem__", lambda self, i: (seen.append((self, int(i))), given(self, i))[1])
    planned = work(order="easy_first", layers_from=0.5)
    _, history = pretraining.pretrain(planned, tokenizer, None)
    trained = [i for rows, i in seen if rows is planned.train]
    hard = curriculum.difficulty(planned.train.rows, tokenizer.get_vocab())
    assert len(trained) == STEPS * 4 < len(hard) and len(set(trained)) == len(trained)
    assert hard[trained].tolist() == sorted(hard[trained].tolist())
    assert hard[trained[0]] == hard.min() and hard[trained[-1]] > np.quantile(hard, 0.9)
    assert [entry["step"] for entry in history if "loss" in entry] == list(range(1, STEPS + 1))


def test_a_given_model_is_gone_on_with(work, tokenizer, tmp_path):
    from stages.contract.errors import UserError
    from stages.trainer.loop import export
    from stages.trainer.model import models

    first, _ = pretraining.pretrain(work("first"), tokenizer, None)
    before = weights(first)
    export.save_trained(first, tokenizer, lambda save, _: save(tmp_path / "init"))
    init = models.initial(tmp_path / "init", tokenizer)
    assert init == tmp_path / "init"
    assert equal(before, models.load(init)[0].state_dict() | {})
    second, _ = pretraining.pretrain(work("second"), tokenizer, init)
    assert not equal(before, weights(second))
    assert Shape.of(second.model.config.to_dict()).num_hidden_layers == 4
    assert models.initial(tmp_path / "nothing", tokenizer) is None
    other = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="another", pad_token="<|pad|>")
    with pytest.raises(UserError, match="another tokenizer than out/tokenizer"):
        models.initial(tmp_path / "init", other)


def test_devices_are_counted_or_taken_from_the_environment(monkeypatch):
    from stages.contract.errors import UserError

    monkeypatch.setenv("VERDICT_GPUS", "2")
    assert hardware.detect_hardware().count == 2
    monkeypatch.setenv("VERDICT_GPUS", "two")
    with pytest.raises(UserError, match="VERDICT_GPUS is 'two'"):
        hardware.detect_hardware()


def test_a_gpu_is_used_as_far_as_it_may_be(monkeypatch):
    from stages.contract.errors import UserError
    from stages.trainer.plan.hardware import _allowed

    assert _allowed(80 * 2**30) == 80 * 2**30
    monkeypatch.setenv("VERDICT_GPU_GIB", "8.5")
    assert _allowed(80 * 2**30) == 8.5 * 2**30
    for value in ("96", "0", "nan", "all"):
        monkeypatch.setenv("VERDICT_GPU_GIB", value)
        with pytest.raises(UserError, match=f"VERDICT_GPU_GIB is '{value}'; .* up to the GPU's 80"):
            _allowed(80 * 2**30)


@pytest.fixture
def mup_work(work):
    """Work as ``work`` makes it, of a model half as wide as muP's base."""

    def make(**options):
        made = work(**options)
        return dataclasses.replace(made, plan=dataclasses.replace(made.plan, mup_base_width=64))

    return make


def test_mup_model_is_plain_and_has_the_trainers_logits(work, mup_work, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    from stages.trainer.loop import export

    ids = torch.randint(0, 128, (2, ROW), generator=torch.Generator().manual_seed(0))
    standard, _ = pretraining.pretrain(work("standard"), tokenizer, None)
    trainer, _ = pretraining.pretrain(mup_work(scratch="mup"), tokenizer, None)
    with torch.no_grad():
        logps = trainer.model.eval()(input_ids=ids, labels=ids).logps[:, :-1]
    for name, trained in (("standard", standard), ("mup", trainer)):
        export.save_trained(trained, tokenizer, lambda save, _, name=name: save(tmp_path / name))
    assert (tmp_path / "mup" / "config.json").read_text() == (tmp_path / "standard" / "config.json").read_text()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "mup", dtype=torch.float32)
    with torch.no_grad():
        theirs = plain(input_ids=ids).logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(logps, theirs, atol=1e-5, rtol=0)
    assert not equal(weights(standard), weights(trainer))


def test_mup_halves_a_branch_where_the_depth_doubles(mup_work, tokenizer, monkeypatch):
    started, train = [], pretraining._train

    def watched(part, model, first_step, last_step):
        started.append({name: value.clone() for name, value in model.state_dict().items()})
        trainer, history = train(part, model, first_step, last_step)
        started.append(weights(trainer))
        return trainer, history

    monkeypatch.setattr(pretraining, "_train", watched)
    pretraining.pretrain(mup_work(layers_from=0.5), tokenizer, None)
    shallow, deep = started[1], started[2]
    for layer in range(4):
        for part, factor in (("self_attn.o_proj", 0.5), ("mlp.down_proj", 0.5), ("mlp.up_proj", 1.0)):
            source = shallow[f"model.layers.{layer % 2}.{part}.weight"]
            assert torch.equal(deep[f"model.layers.{layer}.{part}.weight"], factor * source)


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_stage_refuses_mup_for_other_optimizers_first(mup_work, optimizer, monkeypatch):
    from stages.contract.errors import UserError

    made = mup_work()
    trainer = made.run.params.trainer.model_copy(update={"optimizer": optimizer})
    run = dataclasses.replace(made.run, params=made.run.params.model_copy(update={"trainer": trainer}))
    monkeypatch.setattr(pretraining, "load_packed", lambda: (made.train, made.validation))
    monkeypatch.setattr(pretraining.fit, "train_stage", lambda run, resolve, work, dtype: resolve(CPU) and None)
    if optimizer == "adamw":
        assert pretraining.pretrain_stage(run, made.plan, None) is None
    else:
        with pytest.raises(UserError, match="parametrization: mup has rates for adamw and muon"):
            pretraining.pretrain_stage(run, made.plan, None)
