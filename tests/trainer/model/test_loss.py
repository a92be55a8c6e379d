import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.trainer.model import loss


def reference(hidden, weight, labels, items=None):
    """transformers' loss: shifted logits, cross-entropy."""
    logits = (hidden @ weight.t())[:, :-1].float()
    total = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100, reduction="sum"
    )
    return total / (items if items is not None else (labels[:, 1:] != -100).sum())


def case(batch, length, vocab, width, masked, seed):
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, length, width, generator=draw, dtype=torch.float64).float().requires_grad_()
    weight = torch.randn(vocab, width, generator=draw).requires_grad_()
    labels = torch.randint(0, vocab, (batch, length), generator=draw)
    labels[torch.rand(batch, length, generator=draw) < masked] = -100
    labels[0, -1] = 1  # at least one counts
    return hidden, weight, labels


@settings(max_examples=30)
@given(st.integers(1, 3), st.integers(2, 9), st.integers(2, 17), st.floats(0, 0.9), st.integers(1, 200), st.integers())
def test_loss_and_gradients_are_cross_entropys_in_any_chunks(batch, length, vocab, masked, chunk, seed):
    hidden, weight, labels = case(batch, length, vocab, 5, masked, seed % 2**31)
    expected = reference(hidden, weight, labels)
    expected_gradients = torch.autograd.grad(expected, (hidden, weight))
    before, loss.CHUNK_LOGITS = loss.CHUNK_LOGITS, chunk
    try:
        actual = loss.scored_loss(hidden, weight, labels)[0]
        gradients = torch.autograd.grad(actual * 1.0, (hidden, weight))
    finally:
        loss.CHUNK_LOGITS = before
    torch.testing.assert_close(actual, expected)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_the_sum_is_divided_by_the_items_of_the_whole_step():
    hidden, weight, labels = case(2, 8, 11, 4, 0.3, 0)
    ours = loss.scored_loss(hidden, weight, labels, torch.tensor(100))[0]
    torch.testing.assert_close(ours, reference(hidden, weight, labels, 100))


def test_a_scaled_loss_scales_the_gradients():
    hidden, weight, labels = case(2, 8, 11, 4, 0.0, 1)
    once = torch.autograd.grad(loss.scored_loss(hidden, weight, labels)[0], (hidden, weight))
    thrice = torch.autograd.grad(3 * loss.scored_loss(hidden, weight, labels)[0], (hidden, weight))
    for a, b in zip(once, thrice, strict=True):
        torch.testing.assert_close(3 * a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_gradients_the_loss_is_the_same(dtype):
    hidden, weight, labels = case(2, 16, 30, 8, 0.2, 2)
    with_gradient = loss.scored_loss(hidden.to(dtype), weight, labels)[0]
    with torch.no_grad():
        without = loss.scored_loss(hidden.to(dtype), weight, labels)[0]
    torch.testing.assert_close(with_gradient, without)


def test_a_frozen_head_still_gives_the_hidden_states_a_gradient():
    hidden, weight, labels = case(1, 8, 11, 4, 0.0, 3)
    loss.scored_loss(hidden, weight.detach(), labels)[0].backward()
    expected = torch.autograd.grad(reference(hidden, weight, labels), hidden)[0]
    torch.testing.assert_close(hidden.grad, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("gradient", [True, False])
def test_the_loss_hands_on_the_log_probabilities_of_the_labels(gradient):
    hidden, weight, labels = case(2, 9, 13, 4, 0.4, 4)
    with torch.set_grad_enabled(gradient):
        total, logps = loss.scored_loss(hidden, weight, labels)
    torch.testing.assert_close(logps, loss.token_logps(hidden, weight, labels).detach())
    assert not logps.requires_grad
    torch.testing.assert_close(total, -logps.sum() / (labels[:, 1:] != -100).sum())


def test_what_is_compiled_on_a_gpu_is_what_runs_on_a_cpu():
    logits, targets = torch.randn(12, 7), torch.tensor([0, 1, -100, 6, 5, 4, -100, 3, 2, 1, 0, 6])
    scale = torch.tensor(0.25)
    for a, b in zip(
        loss._logp_and_gradient(logits, targets, scale),
        loss._logp_and_gradient_in_place(logits, targets, scale), strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(a, b)
