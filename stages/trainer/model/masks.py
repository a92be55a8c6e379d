"""Documents of a batch in the forms that attention kernels read: boundaries, dense masks and flex's block masks.

A batch [B, T] holds B packed rows. Everything here is computed on the batch's device: a copy from the host would wait
for all that the device has still to do.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

FLEX_BLOCK = 128


@dataclass(frozen=True)
class Documents:
    """Where the documents of a batch [B, T] lie, in the form that ``backend`` reads."""

    backend: str
    cu_seqlens: torch.Tensor | None  # for kernels that read boundaries: int32 [S + 1] in the flattened batch, 0 to B*T
    longest: int  # tokens of a row, T; no document is longer
    mask: "torch.Tensor | BlockMask | None" = None  # bool [B, 1, T, T], a flex BlockMask, or None


def flat_boundaries(
    cu_seqlens: torch.Tensor | None, batch: int, row_tokens: int, device: torch.device
) -> torch.Tensor:  # fmt: skip
    """Return the documents' boundaries in the flattened batch, ascending: int32 [S + 1].

    `pack` pads each row's boundaries by repeating T. In the flattened batch these repeats are documents of length 0
    between real ones. Sorted to the end, they lie where a kernel that searches its document never looks.

    Args:
        cu_seqlens: int32 [B, M + 1] of `pack`; None: a row is one document.
    """
    rows = torch.arange(batch + 1, device=device, dtype=torch.int32) * row_tokens
    if cu_seqlens is None:
        return rows
    end = rows[-1:]
    ends = (cu_seqlens[:, 1:] + rows[:-1, None]).flatten()
    repeated = ends == torch.cat([torch.zeros_like(end), ends[:-1]])
    return torch.cat([torch.zeros_like(end), torch.where(repeated, end, ends).sort().values])


def document_starts(flat: torch.Tensor, batch: int, row_tokens: int) -> torch.Tensor:
    """Return where in its row each token's document begins, int32 [B, T], from :func:`flat_boundaries`."""
    tokens = torch.arange(batch * row_tokens, device=flat.device, dtype=flat.dtype)
    document = torch.searchsorted(flat[1:].contiguous(), tokens, right=True)
    return (flat[document] - tokens // row_tokens * row_tokens).view(batch, row_tokens)


def dense_mask(starts: torch.Tensor) -> torch.Tensor:
    """Return bool [B, 1, T, T]: a token sees its document from the start up to itself."""
    keys = torch.arange(starts.shape[1], device=starts.device, dtype=starts.dtype)
    return ((keys >= starts[..., None]) & (keys <= keys[:, None]))[:, None]


def block_mask(starts: torch.Tensor) -> "BlockMask":
    """Return flex's BlockMask of documents that begin at ``starts`` [B, T], without evaluating every pair of tokens.

    flex needs two lists for each block of queries: key blocks in which every pair is visible, and key blocks in which
    some pairs are. Starts never decrease along a row, so two numbers decide. A block of queries sees some keys from
    its first token's start up to its own end, and all keys of an earlier block that lies behind its last token's
    start. torch's create_block_mask evaluates all T x T pairs, and its compilation alone takes seconds.
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

    def visible(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        return (kv <= q) & (kv >= starts[b, q])

    return BlockMask.from_kv_blocks(
        *_blocks(some), *_blocks(whole), BLOCK_SIZE=size, mask_mod=visible, seq_lengths=(row_tokens, row_tokens)
    )


def _blocks(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how many key blocks each query block has, int32 [B, 1, Q], and which, int32 [B, 1, Q, K]."""
    order = chosen.int().argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32)[:, None].contiguous(), order.int()[:, None].contiguous()
