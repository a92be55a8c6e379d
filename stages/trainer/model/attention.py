"""Causal attention within documents, over interchangeable backends.

`pack` states once per batch, as cu_seqlens, which tokens belong to one document; a backend reads these boundaries or a
mask made from them (`masks`). transformers' own masks are not used: it infers them from position_ids and silently
drops them when an attention_mask or a cache is given (measured: research of TRL's issue 3067).
"""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.contract.errors import UserError
from stages.trainer.model.masks import Documents, block_mask, dense_mask, document_starts, flat_boundaries

NAME = "verdict"  # the attn_implementation of models in training
# q [B, H, T, D], k and v [B, H_kv, T, D], documents, scale of the scores -> [B, T, H, D]
Kernel = Callable[[Tensor, Tensor, Tensor, Documents, float | None], Tensor]


@dataclass(frozen=True)
class Backend:
    """Attention kernel: one row of BACKENDS.

    Args:
        reads: form of the documents: "boundaries" (cu_seqlens), a mask of "blocks", or a "dense" mask over all pairs,
            which is omitted where rows are single documents.
        kernel: the function that `attend` calls.
        cuda: needs a GPU.
        fp32: takes 32-bit floats, too; other kernels have bf16 and fp16 alone.
        package: module that must be importable; "" for torch's own.
        install: how to get the package.
    """

    reads: Literal["boundaries", "blocks", "dense"]
    kernel: Kernel
    cuda: bool = True
    fp32: bool = False
    package: str = ""
    install: str = ""


def documents(cu_seqlens: Tensor | None, ids: Tensor, backend: str, most: int | None = None) -> Documents:
    """Prepare the documents of a batch for ``backend``.

    Args:
        cu_seqlens: int32 [B, M + 1] of `pack`, padded with T; None: every row is one document.
        ids: the batch, [B, T].
        backend: one of BACKENDS.
        most: upper bound of the batch's documents; None: B * M.
    """
    batch, row_tokens = ids.shape
    reads = BACKENDS[backend].reads
    if cu_seqlens is None and reads == "dense":
        return Documents(backend, None, row_tokens)  # a causal kernel needs no mask
    flat = flat_boundaries(cu_seqlens, batch, row_tokens, ids.device)
    if most is not None:
        flat = flat[: most + 1]
    if reads == "boundaries":
        torch._dynamo.maybe_mark_dynamic(flat, 0)  # the number of documents differs between batches
        return Documents(backend, flat, row_tokens)
    starts = document_starts(flat, batch, row_tokens)
    # cu_seqlens is None for backends that read a mask. A recomputed layer takes every tensor as an input of its graph,
    # and each new number of documents would compile it again (torch 2.11: eight times, then never more).
    return Documents(backend, None, row_tokens, block_mask(starts) if reads == "blocks" else dense_mask(starts))


def attend(
    module: torch.nn.Module | None, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, documents: Documents | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Compute attention for transformers: q [B, H, T, D], k and v [B, H_kv, T, D] -> ([B, T, H, D], None)."""
    if documents is None or attention_mask is not None:
        raise ValueError("attention 'verdict' reads `documents` and no attention_mask; use it through this trainer")
    return BACKENDS[documents.backend].kernel(q, k, v, documents, scaling), None


def register() -> None:
    """Make NAME an attn_implementation of transformers.

    It gets no mask function: with one, transformers searches position_ids for documents and waits for the device to
    find them (masking_utils.find_packed_sequence_indices).
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, documents: Documents, scale: float | None) -> Tensor:
    """Call torch's scaled_dot_product_attention, which picks a kernel by itself."""
    gqa, mask = q.shape[1] != k.shape[1], documents.mask
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scale, enable_gqa=gqa)
    return out.transpose(1, 2)


def _cudnn(q: Tensor, k: Tensor, v: Tensor, documents: Documents, scale: float | None) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return _sdpa(q, k, v, documents, scale)


def _eager(q: Tensor, k: Tensor, v: Tensor, documents: Documents, scale: float | None) -> Tensor:
    """Attention step by step, with all scores in memory: the oracle of the other kernels."""
    groups, mask = q.shape[1] // k.shape[1], documents.mask
    k, v = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (k, v))
    if mask is None:
        mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
    scores = (q @ k.transpose(2, 3) * scale).masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v).transpose(1, 2)


def _flex(q: Tensor, k: Tensor, v: Tensor, documents: Documents, scale: float | None) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    run = _compiled(flex_attention) if q.is_cuda and not torch.compiler.is_compiling() else flex_attention
    return run(
        q, k, v, block_mask=documents.mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    ).transpose(1, 2)  # fmt: skip


@functools.cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=False)


def _varlen(q: Tensor, k: Tensor, v: Tensor, documents: Documents, scale: float | None) -> Tensor:
    """Call torch's own FlashAttention 2; nothing to install."""
    from torch.nn.attention.varlen import varlen_attn

    def kernel(q: Tensor, k: Tensor, v: Tensor, *boundaries: Any) -> Tensor:
        if k.shape[1] != q.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        return varlen_attn(q, k, v, *boundaries, window_size=(-1, 0), scale=scale)

    return _flattened(kernel, q, k, v, documents)


def _flash2(q: Tensor, k: Tensor, v: Tensor, documents: Documents, scale: float | None) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    return _flattened(flash_attn_varlen_func, q, k, v, documents, softmax_scale=scale, causal=True)


def _flash3(q: Tensor, k: Tensor, v: Tensor, documents: Documents, scale: float | None) -> Tensor:
    from flash_attn_interface import flash_attn_varlen_func

    return _flattened(flash_attn_varlen_func, q, k, v, documents, softmax_scale=scale, causal=True)


def _flattened(
    kernel: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, documents: Documents, **options: Any
) -> Tensor:  # fmt: skip
    """Call a FlashAttention ``kernel`` for documents of unequal length, which takes q, k, v as [B*T, H, D]."""
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    ends, longest = documents.cu_seqlens, documents.longest
    out = kernel(q, k, v, ends, ends, longest, longest, **options)
    return out.view(-1, longest, *out.shape[1:])


def _flash4(q: Tensor, k: Tensor, v: Tensor, documents: Documents, scale: float | None) -> Tensor:
    from stages.trainer.model.flash4 import flash4

    return flash4(q, k, v, documents.cu_seqlens, scale)[0]


BACKENDS = {
    "cudnn": Backend("dense", _cudnn),
    "flash2": Backend(
        "boundaries", _flash2, package="flash_attn.flash_attn_interface",
        install="pip install flash-attn builds it from source; `varlen` is the same kernel, in torch",
    ),
    "flash3": Backend(
        "boundaries", _flash3, package="flash_attn_interface",
        install="it is built from the folder hopper/ of flash-attention's sources",
    ),
    "flash4": Backend("boundaries", _flash4, package="flash_attn.cute.interface", install="`make gpu` installs it"),
    "flex": Backend("blocks", _flex, fp32=True),
    "varlen": Backend("boundaries", _varlen),
    "sdpa": Backend("dense", _sdpa, cuda=False, fp32=True),
    "eager": Backend("dense", _eager, cuda=False, fp32=True),
}  # fmt: skip


@functools.cache
def unusable(backend: str) -> str:
    """Return why the package that ``backend`` needs cannot be imported; "" if it can.

    The package is really imported: flash_attn.cute is found where cutlass, which it imports, is missing or broken.
    """
    if not (package := BACKENDS[backend].package):
        return ""
    try:
        importlib.import_module(package)
    except Exception as e:  # a broken binary may raise anything
        return _one_line(e)
    return ""


@functools.cache
def runs(backend: str, head_dim: int) -> str:
    """Return why ``backend`` fails on a tiny batch on this machine's GPU; "" if it works.

    This builds the kernels that the first training step would wait for otherwise.
    """
    if wrong := unusable(backend):
        return wrong
    if not torch.cuda.is_available():
        return ""
    try:
        q, k, v = (
            torch.zeros(1, 2, 256, head_dim, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
        )
        where = documents(torch.tensor([[0, 128, 256]], dtype=torch.int32, device="cuda"), q[:, 0, :, 0], backend)
        attend(None, q, k, v, None, scaling=head_dim**-0.5, documents=where)[0].sum().backward()
    except Exception as e:
        return _one_line(e)
    return ""


def _one_line(e: Exception) -> str:
    return f"{type(e).__name__}: {' '.join(str(e).split())[:150]}"


def choose(
    wanted: str, device: str, capability: tuple[int, int], one_document_rows: bool, head_dim: int = 128,
    precision: str = "bf16",
) -> tuple[str, str]:  # fmt: skip
    """Return the backend and the reason for it.

    Args:
        wanted: one of BACKENDS or "auto".
        device: "cuda" or "cpu".
        capability: of the GPU.
        one_document_rows: no row holds more than one document.
        head_dim: of the model's heads.
        precision: of the training; below "fp32" the kernels get bf16.

    Raises:
        UserError: the backend cannot run here.
    """
    if wanted == "auto":
        return _automatic(device, capability, one_document_rows, head_dim, precision == "fp32")
    row = BACKENDS[wanted]
    if row.cuda and device == "cpu":  # flex has a forward pass there, but no backward
        raise UserError(f"trainer.attention: {wanted} needs a CUDA device. Here: auto, sdpa or eager.")
    if precision == "fp32" and not row.fp32:
        able = ", ".join(name for name, other in BACKENDS.items() if other.fp32)
        raise UserError(f"trainer.attention: {wanted} has no kernel for trainer.precision fp32. Use auto, {able}.")
    if wrong := unusable(wanted):
        raise UserError(
            f"trainer.attention: {wanted} needs the package {row.package}: {row.install}. (It cannot be imported: "
            f"{wrong})"
        )
    return wanted, "as asked"


def _automatic(
    device: str, capability: tuple[int, int], one_document_rows: bool, head_dim: int, fp32: bool
) -> tuple[str, str]:  # fmt: skip
    if device == "cpu":
        return "sdpa", "a document sees only itself: dense mask"
    if capability < (8, 0):
        return "sdpa", "a document sees only itself: dense mask; this GPU has no flash kernels"
    if one_document_rows and fp32:
        return "sdpa", "every row is one document; the faster kernels take no fp32"
    if one_document_rows:
        return "cudnn", "every row is one document: the fastest causal kernel, nothing to install"
    if fp32:
        return "flex", "documents by block mask, compiled; the faster kernels take no fp32"
    missing = ""
    if capability >= (9, 0):
        if not (wrong := runs("flash4", head_dim)):
            return "flash4", "documents by cu_seqlens, Hopper's and Blackwell's own instructions"
        missing = f"; flash4 (`make gpu`) would skip other documents exactly, but fails: {wrong}"
    return "flex", f"documents by block mask, compiled{missing}"
