import dataclasses
import io
import sys
import types

import pytest
import torch

from stages.contract.errors import UserError
from stages.trainer.optim import optimizers, schedules
from stages.trainer.optim.sophia import SOPHIA_RHO
from stages.trainer.plan import recipe
from tests.trainer.wanted import CPU, adamw

BETAS = (0.9, 0.95)
RATE, DECAY = 3e-3, 0.1


@pytest.fixture(params=list(optimizers.OPTIMIZERS))
def name(request):
    if request.param == "adam_mini":
        pytest.importorskip("adam_mini")
    return request.param


@pytest.fixture
def tied(tiny):
    model = tiny()
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


def build(name, model):
    return optimizers.build_optimizer(name, model, RATE, DECAY, BETAS)


def batch():
    tokens = torch.randint(4, 128, (4, 32), generator=torch.Generator().manual_seed(0))
    return {"input_ids": tokens, "labels": tokens}


def train(model, optimizer, steps, first=0):
    """The loss before each of ``steps`` steps on one batch."""
    losses = []
    for step in range(first, first + steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss = model(**batch()).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def saved(state):
    """``state`` as the Trainer writes and reads it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_lowers_the_loss(name, tiny):
    model = tiny()
    losses = train(model, build(name, model), 20)
    assert losses[-1] < losses[0] - 0.5, losses


@pytest.mark.parametrize("shared", [False, True])
def test_holds_every_trainable_parameter_once(name, tiny, tied, shared):
    model = tied if shared else tiny()
    model.model.norm.weight.requires_grad_(False)
    optimizer = build(name, model)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert optimizers.missing(optimizer, model) == []


def test_names_what_the_optimizer_does_not_hold(tiny):
    model = tiny()
    optimizer = build("adamw", model)
    attention = model.model.layers[1].self_attn
    attention.q_proj.weight = torch.nn.Parameter(attention.q_proj.weight.detach().clone())
    assert optimizers.missing(optimizer, model) == ["model.layers.1.self_attn.q_proj.weight"]


@pytest.mark.parametrize("shared", [False, True])
def test_matrices_decay_but_not_embeddings_and_norms(name, tiny, tied, shared):
    model = tied if shared else tiny()
    names = {id(p): n for n, p in model.named_parameters()}
    for group in build(name, model).param_groups:
        for parameter in map(names.get, map(id, group["params"])):
            free = "norm" in parameter or ("embed" in parameter and not shared)  # shared, it is the head too
            assert group["weight_decay"] * optimizers.OPTIMIZERS[name].rate_scale == pytest.approx(0 if free else DECAY)


def test_saved_and_loaded_it_goes_on_bit_for_bit(name, tiny):
    straight, first, second = tiny(), tiny(), tiny()
    train(straight, build(name, straight), 6)
    optimizer = build(name, first)
    train(first, optimizer, 3)
    resumed = build(name, second)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(saved(optimizer.state_dict()))
    train(second, resumed, 3, first=3)
    assert equal(straight, second)


def run(name, model, folder, resume=None):
    """Train ``model`` for five steps by transformers' Trainer, which evaluates and saves after the third."""
    from transformers import Trainer, TrainingArguments

    args = TrainingArguments(
        output_dir=str(folder), max_steps=5, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        use_cpu=True, dataloader_pin_memory=False, report_to=[], disable_tqdm=True, logging_strategy="no",
        eval_strategy="steps", eval_steps=3, save_steps=3,
    )  # fmt: skip
    optimizer = build(name, model)
    schedule = schedules.scheduler(optimizer, "wsd", steps=5, warmup_steps=1, decay_share=0.5)
    tokens = torch.randint(4, 128, (20, 32), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    trainer = Trainer(model, args, train_dataset=rows, eval_dataset=rows[:2], optimizers=(optimizer, schedule))
    trainer.train(resume_from_checkpoint=resume)
    return model


def test_the_trainer_resumes_its_checkpoint_bit_for_bit(name, tiny, tmp_path):
    straight, blank = run(name, tiny(), tmp_path), tiny()
    torch.nn.utils.vector_to_parameters(torch.zeros(blank.num_parameters()), blank.parameters())
    assert equal(straight, run(name, blank, tmp_path / "resumed", resume=str(tmp_path / "checkpoint-3")))


def test_a_schedule_scales_every_group(name, tiny):
    model = tiny()
    optimizer = build(name, model)
    schedule = schedules.scheduler(optimizer, "constant", steps=10, warmup_steps=4, decay_share=0.0)
    for step in range(1, 4):
        train(model, optimizer, 1)
        schedule.step()
        rates = {group["lr"] for group in optimizer.param_groups}
        assert rates == {RATE * optimizers.OPTIMIZERS[name].rate_scale * step / 4}


@pytest.mark.parametrize("tie", [False, True])
def test_state_has_the_bytes_that_the_recipe_plans(name, tie):
    from transformers import LlamaConfig, LlamaForCausalLM

    from stages.scaling.shapes import llama

    shape = dataclasses.replace(llama(256, heads=4, layers=2, head_dim=16, row_tokens=32), tie_word_embeddings=tie)
    model = LlamaForCausalLM(LlamaConfig(**shape.config(), use_cache=False))
    optimizer = build(name, model)
    train(model, optimizer, 1)
    measured = sum(t.nbytes for state in optimizer.state.values() for value in state.values() for t in _tensors(value))
    planned = recipe.resolve(CPU, shape, 8, 32, adamw(optimizer=name))
    assert planned.memory["optimizer"] == pytest.approx(measured, rel=0.05)
    each = planned.memory["optimizer"] / shape.parameters
    assert planned.reasons["optimizer"] == f"{each:.3g} bytes of state a parameter"


def _tensors(value):
    if isinstance(value, list):
        return [t for part in value for t in _tensors(part)]
    return [value] if isinstance(value, torch.Tensor) else []


def test_adamw_is_that_of_torch_set_up_by_hand(tiny):
    ours, theirs = tiny(), tiny()
    parameters = dict(theirs.named_parameters())
    free = [p for n, p in parameters.items() if n.endswith(("norm.weight", "embed_tokens.weight"))]
    decayed = [p for n, p in parameters.items() if n.endswith(("proj.weight", "lm_head.weight"))]
    assert len(free) + len(decayed) == len(parameters)
    groups = [{"params": free, "weight_decay": 0.0}, {"params": decayed, "weight_decay": DECAY}]
    reference = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=1e-8, fused=True)
    assert train(ours, build("adamw", ours), 4) == train(theirs, reference, 4)
    assert equal(ours, theirs)


def test_muon_is_torchs_for_matrices_and_adamw_for_the_rest(tiny):
    ours, theirs = tiny(), tiny()
    train(ours, build("muon", ours), 4)
    matrices = [p for n, p in theirs.named_parameters() if "proj" in n]
    rest = [p for n, p in theirs.named_parameters() if "embed" in n or n.endswith("norm.weight")]
    muon = torch.optim.Muon(matrices, RATE, DECAY, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [{"params": rest, "weight_decay": 0.0}, {"params": [theirs.lm_head.weight]}],
        lr=RATE, betas=BETAS, weight_decay=DECAY,
    )  # fmt: skip
    both = types.SimpleNamespace(zero_grad=theirs.zero_grad, step=lambda: (muon.step(), adamw.step()))
    train(theirs, both, 4)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=RATE / 20, rtol=0)  # orthogonalized in bf16, and here in batches


def test_lion_moves_every_weight_by_the_rate(tiny):
    model, before = tiny(), tiny()
    train(model, optimizers.build_optimizer("lion", model, 5e-3, 0.0, BETAS), 1)
    moved = model.lm_head.weight - before.lm_head.weight
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 1e-3), atol=1e-6, rtol=0)


def test_adam_mini_shares_second_moments_as_its_paper(tiny):
    pytest.importorskip("adam_mini")
    model = tiny()
    optimizer = build("adam_mini", model)
    train(model, optimizer, 1)
    shared = {n: optimizer.state[p]["vmean"].numel() for n, p in model.named_parameters()}
    assert shared["model.embed_tokens.weight"] == shared["lm_head.weight"] == 128
    layer = {n.split(".")[-2]: count for n, count in shared.items() if "layers.0" in n}
    assert layer["q_proj"] == layer["k_proj"] == 2
    assert layer["v_proj"] == layer["o_proj"] == layer["down_proj"] == 32
    assert layer["gate_proj"] == model.config.intermediate_size


def test_schedule_free_evaluates_the_average_and_trains_on(tiny):
    """Of x and y the former is the average of the steps z so far, here of equal weights (arXiv:2405.15682)."""
    model = tiny()
    optimizer = optimizers.build_optimizer("schedule_free", model, RATE, 0.0, BETAS)
    weight, steps = model.lm_head.weight, []
    for step in range(4):
        train(model, optimizer, 1, first=step)
        steps.append(optimizer.state[weight]["z"].clone())
    y = weight.detach().clone()
    optimizer.eval()
    torch.testing.assert_close(weight.detach(), torch.stack(steps).mean(0), atol=1e-6, rtol=0)
    optimizer.train()
    torch.testing.assert_close(weight.detach(), y, atol=1e-6, rtol=0)


def test_sophia_expects_the_diagonal_of_the_gauss_newton_matrix(tiny):
    """For the head's weights that is the mean over tokens of p (1 - p) x^2, with x the hidden state."""
    model = tiny()
    optimizer = build("sophia", model)
    inputs = batch() | {"labels": batch()["labels"].masked_fill(torch.arange(32) % 3 == 0, -100)}
    output = model(**inputs, output_hidden_states=True)
    output.loss.backward()
    counted = inputs["labels"][:, 1:] >= 0
    x, p = output.hidden_states[-1][:, :-1][counted], output.logits[:, :-1][counted].softmax(-1)
    exact = (p * (1 - p)).T @ x.square() / len(x)
    weight = model.lm_head.weight
    state = {p: {"hessian": torch.zeros_like(p)} for p in model.parameters()}
    mean = torch.zeros_like(weight)
    torch.manual_seed(0)
    for _ in range(60):
        optimizer.compute_hutchinson_hessian(param_groups=optimizer.param_groups, state=state)
        mean += state[weight]["hessian"] / SOPHIA_RHO / 60
    torch.testing.assert_close(mean.mean(0), exact.mean(0), rtol=0.1, atol=0)  # of a hidden dimension
    torch.testing.assert_close(mean.mean(1), exact.mean(1), rtol=0.5, atol=0)  # of a token, of which few are drawn


def test_sophia_refuses_an_objective_without_labels(tiny):
    model = tiny()
    optimizer = build("sophia", model)
    model(input_ids=batch()["input_ids"]).logits.sum().backward()
    with pytest.raises(UserError, match="'sophia' needs the cross-entropy"):
        optimizer.step()


@pytest.fixture
def sharded(tiny):
    """A model divided by FSDP, of one process."""
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    model = tiny()
    fully_shard(model, mesh=distributed.init_device_mesh("cpu", (1,)))
    yield model
    distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["sophia", "shampoo"])
def test_sharded_parameters_are_refused_by_whole_optimizers(name, sharded):
    with pytest.raises(UserError, match=f"'{name}' needs whole parameters"):
        build(name, sharded)


def test_lion_trains_sharded_parameters_as_whole_ones(sharded, tiny):
    whole = tiny()
    for model in (sharded, whole):
        train(model, build("lion", model), 2)
    for ours, theirs in zip(sharded.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.full_tensor(), theirs.data)


def test_a_missing_package_is_named_with_how_to_install_it(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(UserError, match=r"'lion'.*pip install 'pytorch-optimizer>="):
        build("lion", tiny())
