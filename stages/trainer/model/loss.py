"""Head and cross-entropy in one, chunk by chunk: the logits of a whole batch are never in memory.

At a vocabulary of 32,000 and 65,536 tokens the logits and their gradient would be 8 GiB in bf16; a chunk holds 1 GiB.
The gradient of the logits is softmax minus one-hot, known as soon as the logits are. So it is formed in the forward
pass and multiplied out at once, nothing is recomputed, and the backward pass only scales the kept gradients.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from stages.corpus.tokens.packed_rows import IGNORED
from stages.scaling.memory import CHUNK_LOGITS

Chunk = Callable[..., tuple[Tensor, Tensor, Tensor]]  # see `chunked_loss`


def scored_loss(
    hidden: Tensor, weight: Tensor, labels: Tensor, items: Tensor | int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the sum over tokens of -log p(next label), over ``items``, a scalar in fp32; and each token's log p.

    The log-probabilities are those of :func:`token_logps`, without a gradient: the loss has them at hand.

    Args:
        hidden: [B, T, D] after the last norm, in the dtype the head computes in.
        weight: [V, D] of the head.
        labels: int64 [B, T]; as in transformers, position t predicts labels[t + 1], and -100 does not count.
        items: divisor of the sum; None: the number of labels that count.
    """
    targets = next_targets(labels)
    scale = reciprocal(items, targets)
    # Compiled, it reads the logits twice and writes their gradient once.
    function = compiled(_logp_and_gradient, True) if hidden.is_cuda else _logp_and_gradient_in_place

    def chunk(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logp, gradient = function(logits, targets, scale)
        return -logp.sum() * scale, logp, gradient

    loss, logps = chunked_loss(hidden, weight, chunk, targets)
    return loss, logps.view(labels.shape)


def reciprocal(items: Tensor | int | None, targets: Tensor) -> Tensor:
    """Return 1 / items, a scalar in fp32 on the device of ``targets``; None: items are the targets that count."""
    if items is None:
        items = (targets != IGNORED).sum()
    if isinstance(items, Tensor):
        return items.to(targets.device).float().reciprocal()
    # Filled on the device: a copy from the host would wait for everything before it.
    return torch.full((), 1 / items, device=targets.device)


def chunked_loss(hidden: Tensor, weight: Tensor, chunk: Chunk, *parts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of the losses of chunks of logits, a scalar in fp32, and log-probabilities, fp32 [B * T].

    The log-probabilities have no gradient.

    Args:
        hidden: [B, T, D] after the last norm, in the dtype the head computes in.
        weight: [V, D] of the head.
        chunk: (logits [N, V], N rows of each of ``parts``) -> (loss, log-probabilities [N], gradient of the logits).
        parts: [B * T, ...] each; they get no gradient.
    """
    return _HeadLoss.apply(hidden.reshape(-1, hidden.shape[-1]), weight, chunk, *parts)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: Tensor, weight: Tensor, chunk: Chunk, *parts: Tensor
    ) -> tuple[Tensor, Tensor]:
        rows, ctx.parts = _rows(weight), len(parts)
        chunks = [part.split(rows) for part in parts]
        head = weight.to(hidden.dtype)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        logps = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        ctx.mark_non_differentiable(logps)
        if not ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]:
            for h, logp, *rest in zip(hidden.split(rows), logps.split(rows), *chunks, strict=True):
                part, scored, _ = chunk(h @ head.t(), *rest)
                loss += part
                logp.copy_(scored)
            return loss, logps
        d_hidden = torch.empty_like(hidden)
        # A frozen head (low-rank adapters) has no gradient.
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        with torch.autocast(hidden.device.type, enabled=False):
            for h, d, logp, *rest in zip(*(x.split(rows) for x in (hidden, d_hidden, logps)), *chunks, strict=True):
                part, scored, d_logits = chunk(h @ head.t(), *rest)
                loss += part
                logp.copy_(scored)
                torch.mm(d_logits, head, out=d)
                if d_weight is not None:
                    d_weight += d_logits.t() @ h
        ctx.save_for_backward(d_hidden, None if d_weight is None else d_weight.to(weight.dtype))
        return loss, logps

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * grad, None if d_weight is None else d_weight * grad, *[None] * (1 + ctx.parts)


def token_logps(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Return log p(labels[t + 1]) at each position t, fp32 [B, T]; 0 where that label does not count, and at the last.

    Args:
        hidden: [B, T, D] after the last norm, in the dtype the head computes in.
        weight: [V, D] of the head.
        labels: int64 [B, T]; -100 does not count.
    """
    targets = next_targets(labels)
    return _HeadLogps.apply(hidden.reshape(-1, hidden.shape[-1]), weight, targets).view(labels.shape)


class _HeadLogps(torch.autograd.Function):
    """Log-probabilities whose gradient is known only in the backward pass, which computes the logits once more.

    A preference loss is a function of a whole answer's log-probability, so unlike in :class:`_HeadLoss` no chunk knows
    its gradient in the forward pass.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        head, parts = weight.to(hidden.dtype), []
        chunk = compiled(_logp, hidden.is_cuda)
        for h, y in zip(hidden.split(_rows(weight)), targets.split(_rows(weight)), strict=True):
            parts.append(chunk(h @ head.t(), y))
        logp, lse = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.save_for_backward(hidden, weight, targets, lse)
        return logp

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
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


def next_targets(labels: Tensor) -> Tensor:
    """Return the target of each position, int64 [B * T]: the next position's label, and none at a row's end."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED).reshape(-1)


def _rows(weight: Tensor) -> int:
    return max(1, CHUNK_LOGITS // weight.shape[0])


def _logp(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p of the targets and logsumexp, fp32 [N] each, of logits [N, V]."""
    logits = logits.float()
    lse = logits.logsumexp(-1)
    picked = logits.gather(1, targets.clamp(min=0)[:, None]).squeeze(1)
    return torch.where(targets != IGNORED, picked - lse, 0.0), lse


def _logp_gradient(logits: Tensor, targets: Tensor, lse: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient of the logits [N, V] for that of the log-probabilities, fp32 [N]."""
    hit = torch.arange(logits.shape[1], device=logits.device)[None] == targets[:, None]
    scale = torch.where(targets != IGNORED, grad, 0.0)[:, None]
    return ((hit.float() - (logits.float() - lse[:, None]).exp()) * scale).to(logits.dtype)


def _logp_and_gradient(logits: Tensor, targets: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p of the targets, fp32 [N], and the loss's gradient by the logits [N, V]; written to be compiled."""
    log_p = logits.float().log_softmax(-1)
    counts = (targets != IGNORED)[:, None]
    target = targets.clamp(min=0)[:, None]
    logp = torch.where(counts, log_p.gather(1, target), 0.0).squeeze(1)
    hit = torch.arange(logits.shape[1], device=logits.device)[None] == target  # fuses, as a scatter would not
    return logp, ((log_p.exp() - hit.float()) * (counts * scale)).to(logits.dtype)


def _logp_and_gradient_in_place(logits: Tensor, targets: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same on a CPU, which runs one operation after the other: three passes over [N, V]."""
    log_p = logits.float().log_softmax(-1)
    counts = (targets != IGNORED)[:, None]
    target = targets.clamp(min=0)[:, None]
    logp = torch.where(counts, log_p.gather(1, target), 0.0).squeeze(1)
    gradient = log_p.exp_().scatter_add_(1, target, torch.full_like(target, -1.0, dtype=log_p.dtype))
    return logp, gradient.mul_(counts * scale).to(logits.dtype)


@functools.cache
def compiled(function: Callable[..., Any], cuda: bool) -> Callable[..., Any]:
    """Compile ``function`` for a GPU; on a CPU the compiler's start costs more than it gains."""
    return torch.compile(function, dynamic=False) if cuda else function
