"""Packed rows as the Trainer reads them."""

import numpy as np
import torch

from stages.corpus.packing import Rows, labels, position_ids


class PackedRows(torch.utils.data.Dataset):
    """Memory-mapped rows of T tokens: input_ids, position_ids and labels, int64 [T].

    position_ids restart at every document; transformers derives the document mask from that, as long as no
    attention_mask and no cache are given (otherwise documents contaminate each other without a word).
    """

    def __init__(self, rows: Rows, limit: int | None = None):
        self.rows = rows
        self.length = min(len(rows.tokens), limit or len(rows.tokens))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        tokens, cu_seqlens, filled = (part[i] for part in self.rows)
        return {
            "input_ids": torch.from_numpy(tokens.astype(np.int64)),
            "position_ids": torch.from_numpy(position_ids(cu_seqlens, len(tokens))),
            "labels": torch.from_numpy(labels(tokens, cu_seqlens, filled)),
        }
