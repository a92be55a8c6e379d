"""Weights and states on the host are the same training, bit for bit, in fewer bytes of the device."""

import pytest
import torch

from tests.trainer.loop.test_causal import train

ON_HOST = {"offload": "cpu", "precision": "bf16"}


@pytest.mark.parametrize(("optimizer", "precision"), [("adamw", "bf16"), ("adamw", "fp32"), ("lion", "bf16")])
def test_it_trains_as_if_everything_were_on_the_device(tiny, rows, tmp_path, optimizer, precision):
    usual, expected = train(tiny, rows, tmp_path, optimizer=optimizer, precision=precision)
    offloaded, losses = train(tiny, rows, tmp_path, optimizer=optimizer, precision=precision, offload="cpu")
    assert offloaded.recipe.on_host and losses == expected
    for (name, a), b in zip(offloaded.model.named_parameters(), usual.model.parameters(), strict=True):
        assert torch.equal(a.host, b), name
        assert torch.equal(a, b.to(a.dtype)), name


def test_the_device_holds_rounded_matrices_and_no_states(tiny, rows, tmp_path):
    trainer, _ = train(tiny, rows, tmp_path, steps=2, **ON_HOST)
    layers = trainer.model.model.layers
    assert {p.dtype for p in layers.parameters() if p.ndim == 2} == {torch.bfloat16}
    assert {p.grad_dtype for p in layers.parameters()} == {torch.float32}
    state = trainer.optimizer.state_dict()["state"]
    assert len(state) == len(list(trainer.model.parameters()))
    assert {t.dtype for entry in state.values() for t in entry.values()} == {torch.float32}


def test_a_resumed_run_is_the_uninterrupted_one(tiny, rows, tmp_path, monkeypatch):
    from transformers import Trainer, TrainerCallback

    def tied():
        model = tiny()
        model.config.tie_word_embeddings = True
        model.tie_weights()
        return model

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_save = control.should_training_stop = state.global_step == 3

    missing = []
    warn = lambda self, found: missing.append(list(found.missing_keys))  # noqa: E731
    monkeypatch.setattr(Trainer, "_issue_warnings_after_load", warn)
    _, expected = train(tied, rows, tmp_path / "whole", **ON_HOST)
    train(tied, rows, tmp_path / "parts", extra={"callbacks": [Stop()]}, **ON_HOST)
    _, losses = train(tied, rows, tmp_path / "parts", resume=tmp_path / "parts/checkpoint-3", **ON_HOST)
    assert losses == expected
    assert missing == [[]], "a head that is the embedding is no missing weight"


def test_released_it_is_a_model_of_fp32_weights(tiny, rows, tmp_path):
    from stages.trainer.loop.export import release

    trainer, _ = train(tiny, rows, tmp_path, steps=2, **ON_HOST)
    kept = {name: p.host.clone() for name, p in trainer.model.named_parameters()}
    release(trainer.model)
    for name, p in trainer.model.named_parameters():
        assert p.dtype == torch.float32 and torch.equal(p, kept[name]), name
    assert not any(hasattr(p, "host") for p in trainer.model.parameters())


def test_what_cannot_be_offloaded_is_refused(tiny, rows, tmp_path):
    from stages.contract import UserError

    with pytest.raises(UserError, match="muon cannot be offloaded; adamw and lion can"):
        train(tiny, rows, tmp_path, optimizer="muon", **ON_HOST)
