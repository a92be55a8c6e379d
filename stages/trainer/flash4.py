"""FlashAttention 4 over documents of unequal length, as an operator torch.compile can see past.

It is Python that builds its kernels when it is called, which would break a compiled layer in two. (torch 2.11 can
register it for itself, and fails: their signatures differ. cuDNN's kernel for unequal lengths, which torch has but
never calls, gave wrong gradients on an H100 and a tenth of the speed.)
"""

import os

import torch
from torch import Tensor

# Its kernels, which take ten seconds to build, are kept for the next process.
os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")


@torch.library.custom_op("verdict::flash4", mutates_args=())
def flash4(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int, scale: float) -> tuple[Tensor, Tensor]:
    """Causal attention within documents.

    Args:
        q: bf16 [N, H, D]; k and v: bf16 [N, H_kv, D].
        ends: int32 [S + 1], cumulative lengths; documents of length 0 are allowed.
        longest: no document is longer.

    Returns:
        out [N, H, D] and the logsumexp of the scores, fp32 [H, N].
    """
    from flash_attn.cute.interface import _flash_attn_fwd

    return _flash_attn_fwd(q, k, v, **_lengths(ends, longest), softmax_scale=scale, causal=True, return_lse=True)[:2]


@flash4.register_fake
def _(q, k, v, ends, longest, scale):
    return torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


@torch.library.custom_op("verdict::flash4_backward", mutates_args=())
def flash4_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, ends: Tensor, longest: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    from flash_attn.cute.interface import _flash_attn_bwd

    return _flash_attn_bwd(
        q, k, v, out, grad, lse, softmax_scale=scale, causal=True, **_lengths(ends, longest)
    )[:3]  # fmt: skip


@flash4_backward.register_fake
def _(grad, q, k, v, out, lse, ends, longest, scale):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _lengths(ends: Tensor, longest: int) -> dict:
    return {"cu_seqlens_q": ends, "cu_seqlens_k": ends, "max_seqlen_q": longest, "max_seqlen_k": longest}


def _keep(ctx, inputs, output):
    q, k, v, ends, ctx.longest, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output, ends)


def _backward(ctx, grad, _):
    q, k, v, out, lse, ends = ctx.saved_tensors
    return *flash4_backward(grad.contiguous(), q, k, v, out, lse, ends, ctx.longest, ctx.scale), None, None, None


flash4.register_autograd(_backward, setup_context=_keep)
