"""FlashAttention 4 over documents of unequal length, as a custom operator that torch.compile does not trace.

It is Python that builds its kernels when it is called, which would break a compiled layer in two. torch 2.11 registers
it by itself, and fails: the signatures differ. cuDNN's kernel for unequal lengths, which torch has but never calls,
gave wrong gradients on an H100 and a tenth of the speed.
"""

import os
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

# The kernels take ten seconds to build; they are kept for the next process, and not in /tmp.
os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(Path.home() / ".cache/flash_attention_cute_dsl"))
HEAD_DIMS = (64, 128)


@torch.library.custom_op("verdict::flash4", mutates_args=())
def flash4(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Compute causal attention within documents.

    The axes are swapped in here: outside, inductor would compute the rotary embedding twice, once in either layout.

    Args:
        q: bf16 [B, H, T, D]; k and v: bf16 [B, H_kv, T, D].
        ends: int32 [S + 1], cumulative lengths in the flattened batch; documents of length 0 are allowed, and cost
            as much time as 127 tokens.

    Returns:
        out [B, T, H, D] and the logsumexp of the scores, fp32 [H, B*T].
    """
    from flash_attn.cute.interface import _flash_attn_fwd

    batch, heads, row_tokens, size = q.shape
    out, lse = _flash_attn_fwd(
        _flat(q), _flat(k), _flat(v), **_lengths(ends, row_tokens), softmax_scale=scale, causal=True, return_lse=True
    )[:2]
    return out.view(batch, row_tokens, heads, size), lse


@flash4.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    batch, heads, row_tokens, size = q.shape
    return q.new_empty(batch, row_tokens, heads, size), q.new_empty(heads, batch * row_tokens, dtype=torch.float32)


@torch.library.custom_op("verdict::flash4_backward", mutates_args=())
def flash4_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, ends: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v."""
    from flash_attn.cute.interface import _flash_attn_bwd

    batch, _, row_tokens, _ = q.shape
    grads = _flash_attn_bwd(
        _flat(q), _flat(k), _flat(v), out.flatten(0, 1), grad.flatten(0, 1), lse, softmax_scale=scale, causal=True,
        **_lengths(ends, row_tokens),
    )[:3]  # fmt: skip
    return tuple(x.view(batch, row_tokens, *x.shape[1:]).transpose(1, 2) for x in grads)


@flash4_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, ends: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(x.new_empty(x.transpose(1, 2).shape).transpose(1, 2) for x in (q, k, v))


def _flat(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(0, 1)


def _lengths(ends: Tensor, longest: int) -> dict[str, Tensor | int]:
    return {"cu_seqlens_q": ends, "cu_seqlens_k": ends, "max_seqlen_q": longest, "max_seqlen_k": longest}


def _keep(
    ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor, Tensor, float], output: tuple[Tensor, Tensor]
) -> None:
    q, k, v, ends, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output, ends)


def _backward(ctx: FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, ends = ctx.saved_tensors
    return *flash4_backward(grad.contiguous(), q, k, v, out, lse, ends, ctx.scale), None, None


flash4.register_autograd(_backward, setup_context=_keep)


def build() -> None:
    """Build the kernels for this machine's GPU ahead of the first training step, which would wait for them."""
    if not torch.cuda.is_available():
        print("No CUDA device here: the first training step will build FlashAttention 4's kernels.")
        return
    for size in HEAD_DIMS:
        print(f"Building FlashAttention 4's kernels for heads of {size}", flush=True)
        ends = torch.tensor([0, 200, 256], dtype=torch.int32, device="cuda")
        q, k, v = (torch.randn(1, 256, 2, size, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for _ in range(3))
        out = flash4(q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), ends, size**-0.5)[0]
        out.sum().backward()
