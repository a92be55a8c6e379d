"""Packed rows as the Trainer reads them."""

import numpy as np
import torch

from stages.corpus.packing import IGNORED, Rows, labels, position_ids


class PackedRows(torch.utils.data.Dataset):
    """Memory-mapped rows of T tokens: input_ids, position_ids and labels, int64 [T], and cu_seqlens, int32 [M + 1]:
    where the row's documents end. position_ids restart at every document.

    Args:
        rows: `stages.corpus.packing.Rows`, or rows with ``labels`` of their own.
        limit: only so many of them.
        extra: name -> array [R, ...] of what else an item holds.
    """

    def __init__(self, rows: Rows, limit: int | None = None, extra: dict[str, np.ndarray] | None = None):
        self.rows, self.extra = rows, extra or {}
        self.length = min(len(rows.tokens), limit or len(rows.tokens))

    def __len__(self) -> int:
        return self.length

    @property
    def row_tokens(self) -> int:
        return self.rows.tokens.shape[1]

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        tokens, cu_seqlens = self.rows.tokens[i], self.rows.cu_seqlens[i]
        given = getattr(self.rows, "labels", None)
        spoken = labels(tokens, cu_seqlens, self.rows.filled[i]) if given is None else given[i].astype(np.int64)
        return {
            "input_ids": torch.from_numpy(tokens.astype(np.int64)),
            "position_ids": torch.from_numpy(position_ids(cu_seqlens, len(tokens))),
            "labels": torch.from_numpy(spoken),
            "cu_seqlens": torch.from_numpy(cu_seqlens.astype(np.int32)),
        } | {name: torch.as_tensor(np.array(values[i])) for name, values in self.extra.items()}

    @property
    def one_document(self) -> bool:
        """Whether no row holds a second document; padding behind the first is seen by none of its tokens."""
        return bool((self.rows.cu_seqlens[: self.length, 1] >= self.rows.filled[: self.length]).all())


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor | int]:
    """Rows stacked, [B, ...], and ``documents``: how many there are in them. It is counted here, on the host, which
    later would have to wait for the device to know."""
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return batch | {"documents": int((batch["cu_seqlens"].diff() > 0).sum())}


def split(batch: dict[str, torch.Tensor | int], parts: int) -> dict[str, torch.Tensor | int]:
    """The batch's rows cut into ``parts`` shorter ones each: [B, T] -> [B·parts, T / parts], the same tokens.

    What is cut starts anew: its positions from 0, its first token without a label.
    """
    if parts == 1:
        return batch
    whole, device = batch["cu_seqlens"], batch["cu_seqlens"].device
    short = batch["input_ids"].shape[1] // parts
    starts = torch.arange(parts, dtype=torch.int32, device=device)[None, :, None] * short
    ends = (whole[:, None, :] - starts).clamp(0, short).flatten(0, 1)
    # Boundaries before the part are 0 now; the last of them is its start.
    places = torch.arange(short, dtype=torch.int32, device=device)
    index = torch.searchsorted(ends, places.repeat(len(ends), 1), right=True) - 1
    labels = batch["labels"].reshape(-1, short).clone()
    labels[:, 0] = IGNORED
    return {
        "input_ids": batch["input_ids"].reshape(-1, short),
        "labels": labels,
        "cu_seqlens": ends,
        "position_ids": places.long()[None] - ends.gather(1, index),
        "documents": batch["documents"] + len(whole) * (parts - 1),
    }
