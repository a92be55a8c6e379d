"""A step that would do harm is left out, by the kernel where it can be told and by the host where not."""

import pytest
import torch

from stages.trainer.optim.guard import WINDOW, Guard

OPTIMIZERS = {
    "fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "plain": lambda p: torch.optim.AdamW(p, lr=0.1, fused=False),
    "another": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
}


def step(guard, optimizer, weight, gradient):
    weight.grad = torch.full_like(weight, gradient)
    guard.watch(weight.grad.norm(), optimizer)
    optimizer.step()
    return weight.detach().clone()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("harm", [float("nan"), float("inf")])
def test_a_norm_that_is_not_finite_changes_nothing(kind, harm):
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer, guard = OPTIMIZERS[kind]([weight]), Guard(0.0, torch.device("cpu"))
    before = step(guard, optimizer, weight, 1.0)
    state = {k: v.clone() for k, v in optimizer.state[weight].items() if torch.is_tensor(v)}
    assert torch.equal(step(guard, optimizer, weight, harm), before)
    assert all(torch.equal(optimizer.state[weight][k], v) for k, v in state.items())
    assert int(guard.skipped) == 1
    assert not torch.equal(step(guard, optimizer, weight, 1.0), before), "the next step is taken"


def test_a_spike_is_left_out_once_there_is_a_history():
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer, guard = OPTIMIZERS["fused"]([weight]), Guard(6.0, torch.device("cpu"))
    step(guard, optimizer, weight, 50.0)  # the first norms are large: no history yet
    for i in range(2 * WINDOW):
        before = step(guard, optimizer, weight, 1.0 + 0.1 * (i % 3))
    assert int(guard.skipped) == 0
    assert torch.equal(step(guard, optimizer, weight, 10.0), before)
    assert int(guard.skipped) == 1


def test_equal_norms_are_no_spikes():
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer, guard = OPTIMIZERS["fused"]([weight]), Guard(6.0, torch.device("cpu"))
    for _ in range(2 * WINDOW):
        step(guard, optimizer, weight, 1.0)
    assert int(guard.skipped) == 0


def test_a_resumed_guard_judges_as_one_that_went_on(tmp_path):
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer, guard = OPTIMIZERS["fused"]([weight]), Guard(6.0, torch.device("cpu"))
    for i in range(WINDOW + 5):
        step(guard, optimizer, weight, 1.0 + 0.1 * (i % 3))
    step(guard, optimizer, weight, float("nan"))
    guard.save(tmp_path / "guard.safetensors")
    second = Guard(6.0, torch.device("cpu"))
    second.load(tmp_path / "guard.safetensors")
    assert int(second.skipped) == 1
    for norm in (1.1, 30.0, 1.2):
        for each in (guard, second):
            each.watch(torch.tensor(norm), optimizer)
        assert torch.equal(guard.harm, second.harm)
        assert torch.equal(guard.norms, second.norms)
