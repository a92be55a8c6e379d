"""Causal attention within documents, over interchangeable backends.

Rows hold several documents. Which tokens belong together is stated once a batch as cu_seqlens; a backend either
takes those (varlen kernels) or a mask made from them. transformers' own masks are inferred from position_ids and
dropped without a word when an attention_mask or a cache is given (measured: research of issue 3067 of TRL), so
none of them is used here.
"""

import functools
import importlib.util
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from stages.contract.errors import UserError

NAME = "verdict"  # the attn_implementation of models in training
WITH_CUDA = ("cudnn", "flash2", "flash3", "flash4", "flex", "varlen")
RAGGED = ("flash2", "flash3", "flash4", "varlen")  # by cu_seqlens
DENSE = ("cudnn", "sdpa", "eager")  # by a mask over all pairs, or none where rows are single documents
BACKENDS = (*WITH_CUDA, "sdpa", "eager")
FLEX_BLOCK = 128


@dataclass(frozen=True)
class Documents:
    """Where the documents of a batch [B, T] lie, in the form that ``backend`` reads."""

    backend: str
    cu_seqlens: torch.Tensor | None  # int32 [S + 1], boundaries in the flattened batch, from 0 to B*T
    longest: int  # no document is longer; T
    mask: object = None  # bool [B, 1, T, T], a flex BlockMask, or None


def documents(
    cu_seqlens: torch.Tensor | None, ids: torch.Tensor, backend: str, most: int | None = None
) -> Documents:  # fmt: skip
    """Prepare ``backend`` for a batch.

    Args:
        cu_seqlens: int32 [B, M + 1] as `pack` writes them (padded with T), or None: every row is one document.
        ids: the batch, [B, T].
        backend: one of BACKENDS.
        most: the batch holds no more documents than this; None: B * M.
    """
    batch, row_tokens = ids.shape
    if cu_seqlens is None and backend in DENSE:
        return Documents(backend, None, row_tokens)  # a causal kernel needs no mask
    flat = _flat(cu_seqlens, batch, row_tokens, ids.device)
    if most is not None:
        flat = flat[: most + 1]
    if backend in RAGGED:
        torch._dynamo.maybe_mark_dynamic(flat, 0)  # no batch has the number of documents of another
        return Documents(backend, flat, row_tokens)
    starts = _starts(flat, batch, row_tokens)
    return Documents(backend, flat, row_tokens, _block_mask(starts) if backend == "flex" else _dense(starts))


def _flat(cu_seqlens: torch.Tensor | None, batch: int, row_tokens: int, device) -> torch.Tensor:
    """int32 [S + 1]: ascending boundaries of the documents in [B*T], those of no length at the end, where a kernel
    that looks for its document never comes. Nothing here is copied from the host, which would wait for the device.
    """
    rows = torch.arange(batch + 1, device=device, dtype=torch.int32) * row_tokens
    if cu_seqlens is None:
        return rows
    end = rows[-1:]
    ends = (cu_seqlens[:, 1:] + rows[:-1, None]).flatten()
    repeated = ends == torch.cat([torch.zeros_like(end), ends[:-1]])
    return torch.cat([torch.zeros_like(end), torch.where(repeated, end, ends).sort().values])


def _starts(flat: torch.Tensor, batch: int, row_tokens: int) -> torch.Tensor:
    """int32 [B, T]: where in its row each token's document begins; ``flat`` of :func:`_flat`."""
    tokens = torch.arange(batch * row_tokens, device=flat.device, dtype=flat.dtype)
    document = torch.searchsorted(flat[1:].contiguous(), tokens, right=True)
    return (flat[document] - tokens // row_tokens * row_tokens).view(batch, row_tokens)


def _dense(starts: torch.Tensor) -> torch.Tensor:
    """bool [B, 1, T, T]: a token sees what lies between its document's beginning and itself."""
    keys = torch.arange(starts.shape[1], device=starts.device, dtype=starts.dtype)
    return ((keys >= starts[..., None]) & (keys <= keys[:, None]))[:, None]


def _block_mask(starts: torch.Tensor):
    """flex's BlockMask of documents that begin at ``starts`` [B, T], without looking at all pairs of tokens.

    Beginnings never decrease along a row, so a block of queries sees from its first one's beginning to its own end,
    and all of a block of keys that lies before it and after its last one's beginning. (create_block_mask evaluates
    every pair, and its compilation alone takes seconds.)
    """
    from torch.nn.attention.flex_attention import BlockMask

    row_tokens = starts.shape[1]
    size = FLEX_BLOCK
    first, last = starts[:, ::size, None], starts[:, size - 1 :: size, None]  # [B, T / size, 1]
    if row_tokens % size:
        last = torch.cat([last, starts[:, -1:, None]], 1)
    queries = torch.arange(first.shape[1], device=starts.device)[:, None]
    keys = queries.t()
    whole = (keys < queries) & (keys * size >= last)
    some = (keys <= queries) & ((keys + 1) * size > first) & ~whole

    def visible(b, h, q, kv):
        return (kv <= q) & (kv >= starts[b, q])

    return BlockMask.from_kv_blocks(
        *_blocks(some), *_blocks(whole), BLOCK_SIZE=size, mask_mod=visible, seq_lengths=(row_tokens, row_tokens)
    )


def _blocks(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """bool [B, Q, K] -> how many blocks of keys each block of queries has, and which: int32 [B, 1, Q], [B, 1, Q, K]."""
    order = chosen.int().argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32)[:, None].contiguous(), order.int()[:, None].contiguous()


@functools.cache
def _compiled(function):
    return torch.compile(function, dynamic=False)


def attend(module, q, k, v, attention_mask, scaling=None, dropout=0.0, documents: Documents | None = None, **kwargs):
    """The function transformers calls: q [B, H, T, D], k and v [B, H_kv, T, D] -> ([B, T, H, D], None)."""
    if documents is None or attention_mask is not None:
        raise ValueError("attention 'verdict' reads `documents` and no attention_mask; use it through this trainer")
    backend = documents.backend
    if backend == "flash4":
        from stages.trainer.flash4 import flash4

        return flash4(q, k, v, documents.cu_seqlens, scaling)[0], None
    if backend in RAGGED:
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # [B*T, H, D]
        out = _varlen(backend, q, k, v, documents, scaling)
        return out.view(-1, documents.longest, *out.shape[1:]), None
    return _masked(backend, q, k, v, documents.mask, scaling).transpose(1, 2), None


def _masked(backend, q, k, v, mask, scale):
    gqa = q.shape[1] != k.shape[1]
    if backend == "flex":
        from torch.nn.attention.flex_attention import flex_attention

        run = _compiled(flex_attention) if q.is_cuda and not torch.compiler.is_compiling() else flex_attention
        return run(q, k, v, block_mask=mask, scale=scale, enable_gqa=gqa)
    if backend == "eager":
        return _eager(q, k, v, mask, scale)
    if backend == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scale, enable_gqa=gqa)
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scale, enable_gqa=gqa)


def _eager(q, k, v, mask, scale):
    """Every step by itself, scores and all: what the others are compared with."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (k, v))
    if mask is None:
        mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
    scores = (q @ k.transpose(2, 3) * scale).masked_fill(~mask, float("-inf"))
    return scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v


def _varlen(backend, q, k, v, documents, scale):
    ends, longest = documents.cu_seqlens, documents.longest
    if backend == "varlen":  # torch's FlashAttention 2; nothing to install
        from torch.nn.attention.varlen import varlen_attn

        if k.shape[1] != q.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        return varlen_attn(q, k, v, ends, ends, longest, longest, window_size=(-1, 0), scale=scale)
    if backend == "flash3":
        from flash_attn_interface import flash_attn_varlen_func
    else:
        from flash_attn import flash_attn_varlen_func
    return flash_attn_varlen_func(q, k, v, ends, ends, longest, longest, softmax_scale=scale, causal=True)


def register() -> None:
    """Make NAME an attn_implementation of transformers.

    Without a mask function: for those that have one, transformers looks for documents in position_ids and waits for
    the device to find them (masking_utils.find_packed_sequence_indices).
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)


PACKAGES = {"flash2": "flash_attn.flash_attn_interface", "flash3": "flash_attn_interface", "flash4": "flash_attn.cute"}
INSTALL = {
    "flash2": "pip install flash-attn builds it from source; `varlen` is the same kernel, in torch",
    "flash3": "it is built from the folder hopper/ of flash-attention's sources",
    "flash4": "`make gpu` installs it",
}


def installed(backend: str) -> bool:
    """Whether the package a backend needs can be imported (torch brings cudnn, flex, varlen, sdpa and eager)."""
    if backend not in PACKAGES:
        return True
    try:
        return importlib.util.find_spec(PACKAGES[backend]) is not None
    except ModuleNotFoundError:
        return False


def choose(wanted: str, device: str, capability: tuple[int, int], one_document_rows: bool) -> tuple[str, str]:
    """(backend, reason) for ``wanted``, which is one of BACKENDS or "auto".

    Raises:
        UserError: the backend cannot run here.
    """
    if wanted == "auto":
        return _automatic(device, capability, one_document_rows)
    if wanted in WITH_CUDA and device == "cpu":  # flex has a forward pass there, but no backward
        raise UserError(f"trainer.attention: {wanted} needs a CUDA device. Here: auto, sdpa or eager.")
    if not installed(wanted):
        raise UserError(f"trainer.attention: {wanted} needs the package {PACKAGES[wanted]}: {INSTALL[wanted]}.")
    return wanted, "as asked"


def _automatic(device: str, capability: tuple[int, int], one_document_rows: bool) -> tuple[str, str]:
    if device == "cpu":
        return "sdpa", "a document sees only itself: dense mask"
    if one_document_rows and capability >= (8, 0):
        return "cudnn", "every row is one document: the fastest causal kernel, nothing to install"
    if capability >= (9, 0) and installed("flash4"):
        return "flash4", "documents by cu_seqlens, Hopper's and Blackwell's own instructions"
    if capability >= (8, 0):
        missing = "; flash4 (`make gpu`) would skip other documents exactly" if capability >= (9, 0) else ""
        return "flex", f"documents by block mask, compiled{missing}"
    return "sdpa", "a document sees only itself: dense mask; this GPU has no flash kernels"
