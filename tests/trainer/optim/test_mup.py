"""muP in the trainer: groups, the plain model's equality with multipliers, and the coordinate check."""

import dataclasses

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.coordinates import sizes_over_widths
from stages.contract.errors import UserError
from stages.scaling.mup import BASE, Mup
from stages.scaling.shapes import Shape, llama
from stages.trainer.model.initialization import rescale
from stages.trainer.model.offload import keep_on_host
from stages.trainer.optim import optimizers
from stages.trainer.optim.groups import EPSILON

RATE, DECAY, BETAS = 4e-3, 0.1, (0.9, 0.95)


def shaped(width=128, layers=2, tied=False) -> Shape:
    return dataclasses.replace(llama(128, width // 64, layers, 64, 32), tie_word_embeddings=tied)


def model_of(shape: Shape, mup: Mup | None = None) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape.config(), use_cache=False))
    if mup:
        rescale(model, mup)
    return model


def build(name, model, mup=None):
    return optimizers.build_optimizer(name, model, RATE, DECAY, BETAS, mup=mup)


def train(model, optimizer, steps=4):
    draw, losses = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        tokens = torch.randint(4, 128, (4, 32), generator=draw)
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_at_the_base_mup_is_standard_to_the_byte(name):
    shape = shaped(width=64, layers=BASE.num_hidden_layers)
    mup = Mup.of(shape, base_width=64)
    standard, same = model_of(shape), model_of(shape, mup)
    assert train(standard, build(name, standard), 2) == train(same, build(name, same, mup), 2)
    assert all(torch.equal(p, q) for p, q in zip(standard.parameters(), same.parameters(), strict=True))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_groups_hold_every_parameter_once_at_one_strength_of_decay(name, tied):
    shape = shaped(tied=tied)
    mup = Mup.of(shape, BASE.hidden_size)
    model = model_of(shape, mup)
    optimizer = build(name, model, mup)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))
    strengths = {round(group["lr"] * group["weight_decay"], 12) for group in optimizer.param_groups}
    assert strengths == {0.0, round(RATE * DECAY, 12)}


@pytest.mark.parametrize("tied", [False, True])
def test_plain_model_equals_one_with_multipliers(tied):
    """The oracle has multipliers in its forward pass, and the rates, decays and epsilons of CompleteP's table 1."""
    shape = shaped(width=192, layers=3, tied=tied)
    mup = Mup.of(shape, BASE.hidden_size)
    plain, oracle = model_of(shape, mup), model_of(shape)
    groups = []
    with torch.no_grad():
        for name, p in oracle.named_parameters():
            matrix, block = "proj" in name, "layers" in name
            p.mul_(mup.width**-0.5 if matrix else 1.0)
            groups.append({
                "params": [p], "lr": RATE / mup.width if matrix else RATE,
                "weight_decay": DECAY * mup.width if matrix else 0.0 if "norm" in name or "embed" in name else DECAY,
                "eps": EPSILON / mup.width / (mup.depth if block else 1.0),
            })  # fmt: skip
    if tied:
        groups[0]["weight_decay"] = DECAY  # of the head, which the embedding is
    for layer in oracle.model.layers:
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            projection.register_forward_hook(lambda module, inputs, output: output / mup.depth)
    oracle.lm_head.register_forward_hook(lambda module, inputs, output: output / mup.width)
    theirs = train(oracle, torch.optim.AdamW(groups, betas=BETAS), 6)
    assert train(plain, build("adamw", plain, mup), 6) == pytest.approx(theirs, abs=2e-5)
    assert abs(theirs[0] - theirs[-1]) > 0.01, "weights move"


def test_offloaded_model_keeps_rates_decays_and_epsilons():
    mup = Mup.of(shaped(), BASE.hidden_size)
    usual, offloaded = model_of(shaped(), mup), model_of(shaped(), mup)
    keep_on_host(offloaded, rounded=False)
    optimizer = optimizers.build_optimizer("adamw", offloaded, RATE, DECAY, BETAS, on_host=True, mup=mup)
    assert train(offloaded, optimizer) == train(usual, build("adamw", usual, mup))


@pytest.mark.parametrize("name", sorted(optimizers.OPTIMIZERS.keys() - {"adamw", "muon"}))
def test_other_optimizers_are_refused_in_one_line(name):
    with pytest.raises(UserError, match=f"mup has rates for adamw and muon, and trainer.optimizer is {name}") as error:
        build(name, model_of(shaped()), Mup.of(shaped(), BASE.hidden_size))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("optimizer", "widest"), [("adamw", 512), ("muon", 128)])
def test_activations_stay_flat_over_widths(optimizer, widest):
    """Changes after a few steps, of the widest over the narrowest: with muP about as large, else several times."""
    ratio = {
        parametrization: {
            part: by_width[widest] / by_width[64]
            for part, by_width in sizes_over_widths(parametrization, optimizer, (64, widest)).items()
        }
        for parametrization in ("standard", "mup")
    }
    assert all(0.4 < value < 2.5 for value in ratio["mup"].values()), ratio["mup"]
    assert max(ratio["standard"].values()) > 2.5, ratio["standard"]
