"""The head and the cross-entropy in one, chunk by chunk: the logits of a whole batch are never in memory.

The gradient is formed in the forward pass, while a chunk's logits are at hand, so nothing is recomputed. At a
vocabulary of 32,000 and 65,536 tokens the logits and their gradient would be 8 GiB in bf16; a chunk holds 1 GiB.
"""

import functools
from collections.abc import Callable

import torch

from stages.scaling.memory import CHUNK_LOGITS

IGNORED = -100


def next_token_loss(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Sum over tokens of -log p(next label), over ``items``; a scalar in fp32. Arguments as of :func:`scored_loss`."""
    return scored_loss(hidden, weight, labels, items)[0]


def scored_loss(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, items: torch.Tensor | int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(`next_token_loss`, log p(labels[t + 1]) at each position t as of :func:`token_logps`, without a gradient): the
    loss has them at hand, so they cost nothing.

    Args:
        hidden: [B, T, D] after the last norm, in the dtype the head computes in.
        weight: [V, D] of the head.
        labels: int64 [B, T]; as in transformers, position t predicts labels[t + 1], and -100 does not count.
        items: what the sum is divided by; None: the labels that count.
    """
    targets = next_targets(labels)
    scale = reciprocal(items, targets)
    # Compiled it reads the logits twice and writes their gradient once.
    function = compiled(_logp_and_gradient, True) if hidden.is_cuda else _logp_and_gradient_in_place

    def chunk(logits, targets):
        logp, gradient = function(logits, targets, scale)
        return -logp.sum() * scale, logp, gradient

    loss, logps = chunked_loss(hidden, weight, chunk, targets)
    return loss, logps.view(labels.shape)


def reciprocal(items: torch.Tensor | int | None, targets: torch.Tensor) -> torch.Tensor:
    """1 / items, a scalar in fp32 on the device of ``targets``; None: of those that count."""
    if items is None:
        items = (targets != IGNORED).sum()
    if isinstance(items, torch.Tensor):
        return items.to(targets.device).float().reciprocal()
    # Filled on the device: a copy from the host would wait for everything before it.
    return torch.full((), 1 / items, device=targets.device)


def chunked_loss(
    hidden: torch.Tensor, weight: torch.Tensor, chunk: Callable, *parts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the sum of the losses that ``chunk`` makes of some logits at a time, a scalar in fp32; the log-probabilities it
    finds, fp32 [B * T], without a gradient).

    Args:
        hidden: [B, T, D] after the last norm, in the dtype the head computes in.
        weight: [V, D] of the head.
        chunk: (logits [N, V], N rows of each of ``parts``) -> (loss, log-probabilities [N], gradient of the logits).
        parts: [B * T, ...] each; they get no gradient.
    """
    return _HeadLoss.apply(hidden.reshape(-1, hidden.shape[-1]), weight, chunk, *parts)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, chunk, *parts):
        rows, ctx.parts = _rows(weight), len(parts)
        parts = [part.split(rows) for part in parts]
        head = weight.to(hidden.dtype)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        logps = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        ctx.mark_non_differentiable(logps)
        if not ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]:
            for h, logp, *rest in zip(hidden.split(rows), logps.split(rows), *parts, strict=True):
                part, found, _ = chunk(h @ head.t(), *rest)
                loss += part
                logp.copy_(found)
            return loss, logps
        d_hidden = torch.empty_like(hidden)
        # A frozen head has no gradient (low-rank adapters).
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        with torch.autocast(hidden.device.type, enabled=False):
            for h, d, logp, *rest in zip(*(x.split(rows) for x in (hidden, d_hidden, logps)), *parts, strict=True):
                part, found, d_logits = chunk(h @ head.t(), *rest)
                loss += part
                logp.copy_(found)
                torch.mm(d_logits, head, out=d)
                if d_weight is not None:
                    d_weight += d_logits.t() @ h
        ctx.save_for_backward(d_hidden, None if d_weight is None else d_weight.to(weight.dtype))
        return loss, logps

    @staticmethod
    def backward(ctx, grad, _):
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * grad, None if d_weight is None else d_weight * grad, *[None] * (1 + ctx.parts)


def token_logps(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log p(labels[t + 1]) at each position t, fp32 [B, T]; 0 where that label does not count, and at the last.

    Args:
        hidden: [B, T, D] after the last norm, in the dtype the head computes in.
        weight: [V, D] of the head.
        labels: int64 [B, T]; -100 does not count.
    """
    targets = next_targets(labels)
    return _HeadLogps.apply(hidden.reshape(-1, hidden.shape[-1]), weight, targets).view(labels.shape)


class _HeadLogps(torch.autograd.Function):
    """What is done with a sequence's log-probability, its tokens cannot know; so unlike in :class:`_HeadLoss` the
    logits are computed once more in the backward pass."""

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        head, parts = weight.to(hidden.dtype), []
        chunk = compiled(_logp, hidden.is_cuda)
        for h, y in zip(hidden.split(_rows(weight)), targets.split(_rows(weight)), strict=True):
            parts.append(chunk(h @ head.t(), y))
        logp, lse = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.save_for_backward(hidden, weight, targets, lse)
        return logp

    @staticmethod
    def backward(ctx, grad):
        hidden, weight, targets, lse = ctx.saved_tensors
        head, d_hidden = weight.to(hidden.dtype), torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        chunk = compiled(_logp_gradient, hidden.is_cuda)
        parts = (x.split(_rows(weight)) for x in (hidden, targets, lse, grad, d_hidden))
        with torch.autocast(hidden.device.type, enabled=False):
            for h, y, z, g, d in zip(*parts, strict=True):
                d_logits = chunk(h @ head.t(), y, z, g)
                torch.mm(d_logits, head, out=d)
                if d_weight is not None:
                    d_weight += d_logits.t() @ h
        return d_hidden, None if d_weight is None else d_weight.to(weight.dtype), None


def next_targets(labels) -> torch.Tensor:
    """What each position predicts, int64 [B * T]: the next one's label, and nothing at a row's end."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED).reshape(-1)


def _rows(weight) -> int:
    return max(1, CHUNK_LOGITS // weight.shape[0])


def _logp(logits, targets):
    """(log p of the targets, logsumexp), fp32 [N] each, of logits [N, V]."""
    logits = logits.float()
    lse = logits.logsumexp(-1)
    picked = logits.gather(1, targets.clamp(min=0)[:, None]).squeeze(1)
    return torch.where(targets != IGNORED, picked - lse, 0.0), lse


def _logp_gradient(logits, targets, lse, grad):
    """Gradient of the logits [N, V] for that of the log-probabilities, fp32 [N]."""
    hit = torch.arange(logits.shape[1], device=logits.device)[None] == targets[:, None]
    scale = torch.where(targets != IGNORED, grad, 0.0)[:, None]
    return ((hit.float() - (logits.float() - lse[:, None]).exp()) * scale).to(logits.dtype)


def _logp_and_gradient(logits, targets, scale):
    """(log p of the targets, fp32 [N], gradient of the loss by the logits) of a chunk: logits [N, V], targets int64
    [N]; written to be compiled."""
    log_p = logits.float().log_softmax(-1)
    counts = (targets != IGNORED)[:, None]
    target = targets.clamp(min=0)[:, None]
    logp = torch.where(counts, log_p.gather(1, target), 0.0).squeeze(1)
    hit = torch.arange(logits.shape[1], device=logits.device)[None] == target  # fuses, as a scatter would not
    return logp, ((log_p.exp() - hit.float()) * (counts * scale)).to(logits.dtype)


def _logp_and_gradient_in_place(logits, targets, scale):
    """The same, written for a CPU that runs one operation after the other: three passes over [N, V]."""
    log_p = logits.float().log_softmax(-1)
    counts = (targets != IGNORED)[:, None]
    target = targets.clamp(min=0)[:, None]
    logp = torch.where(counts, log_p.gather(1, target), 0.0).squeeze(1)
    gradient = log_p.exp_().scatter_add_(1, target, torch.full_like(target, -1.0, dtype=log_p.dtype))
    return logp, gradient.mul_(counts * scale).to(logits.dtype)


@functools.cache
def compiled(function, cuda: bool):
    """``function`` for a GPU; on a CPU the compiler's start costs more than it gains."""
    return torch.compile(function, dynamic=False) if cuda else function
