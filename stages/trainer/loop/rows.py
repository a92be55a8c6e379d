"""Packed rows as items and batches of the Trainer."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stages.corpus.tokens.packed_rows import IGNORED, Rows, labels, position_ids

if TYPE_CHECKING:
    from stages.corpus.chats.encoding import Chats, PairRows

Batch = dict[str, Any]  # of `collate`


class PackedRows(torch.utils.data.Dataset):
    """Dataset of memory-mapped rows of T tokens: input_ids, position_ids, labels, int64 [T]; cu_seqlens, int32 [M + 1].

    cu_seqlens is where the row's documents end; position_ids restart at every document.

    Args:
        rows: `stages.corpus.tokens.packed_rows.Rows`, or rows with ``labels`` of their own.
        limit: number of rows to use; None: all.
        extra: name -> array [R, ...]: more fields of a row.
    """

    def __init__(
        self, rows: "Rows | Chats | PairRows", limit: int | None = None, extra: dict[str, np.ndarray] | None = None
    ) -> None:
        self.rows, self.extra = rows, extra or {}
        self.length = min(len(rows.tokens), limit or len(rows.tokens))

    def __len__(self) -> int:
        return self.length

    @property
    def row_tokens(self) -> int:
        return self.rows.tokens.shape[1]

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        tokens, cu_seqlens = self.rows.tokens[i], self.rows.cu_seqlens[i]
        own = getattr(self.rows, "labels", None)
        targets = labels(tokens, cu_seqlens, self.rows.filled[i]) if own is None else own[i].astype(np.int64)
        return {
            "input_ids": torch.from_numpy(tokens.astype(np.int64)),
            "position_ids": torch.from_numpy(position_ids(cu_seqlens, len(tokens))),
            "labels": torch.from_numpy(targets),
            "cu_seqlens": torch.from_numpy(cu_seqlens.astype(np.int32)),
        } | {name: torch.as_tensor(np.array(values[i])) for name, values in self.extra.items()}

    @property
    def one_document(self) -> bool:
        """Whether no row holds a second document. Padding behind the first does not count: no token attends to it."""
        return bool((self.rows.cu_seqlens[: self.length, 1] >= self.rows.filled[: self.length]).all())


def collate(rows: list[dict[str, torch.Tensor]]) -> Batch:
    """Stack rows to [B, ...] and count their ``documents`` here, on the host, which would wait for the device later."""
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return batch | {"documents": int((batch["cu_seqlens"].diff() > 0).sum())}


def split_rows(batch: Batch, parts: int) -> Batch:
    """Cut each row of the batch into ``parts`` shorter ones: [B, T] -> [B·parts, T / parts], the same tokens.

    A document that is cut starts anew: its positions from 0, its first token without a label.
    """
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
