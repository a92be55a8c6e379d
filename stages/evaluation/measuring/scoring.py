"""Log-probabilities of given tokens, batched by length. All measures of likelihood use this module."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stages.contract import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# Tokens in a batch: on a CPU more fall out of the cache and are slower (2 cores: 17,500 tokens/s at 4096 against
# 11,000 at 16384); a GPU needs more to be busy.
BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
HEAD_ROWS = 4096  # positions whose logits exist at once


def token_logprobs(
    model: "PreTrainedModel",
    sequences: Sequence[Sequence[int]],
    positions: Sequence[np.ndarray],
    step: Callable[[int], None] = lambda done: None,
    keep: "Callable[[Tensor], None]" = lambda hidden: None,
) -> list[np.ndarray]:
    """Return log p(sequence[p] | sequence[:p]) in nats, for each asked position p of each sequence.

    Args:
        model: a causal language model of transformers; its device is used.
        sequences: token ids. A position p needs p inputs, so p may be at most the model's context.
        positions: for each sequence an ascending int array of positions >= 1, shape (asked,); may be empty.
        step: called after each batch with the number of positions done.
        keep: called in each batch with the head's input at its positions, a tensor (asked, D). Batches depend on
            the lengths alone, so they come in one order whatever the model.

    Returns:
        For each sequence an array of shape (asked,), float64.

    Raises:
        ValueError: a position without an input before it or beyond the context.
        UserError: a log-probability that is not finite.
    """
    context = model.config.max_position_embeddings
    lengths = np.array([int(asked[-1]) if len(asked) else 0 for asked in positions])
    for asked, length in zip(positions, lengths, strict=True):
        if length > context or (len(asked) and asked[0] < 1):
            raise ValueError(f"positions {asked[0]}..{length} do not lie in 1..{context}")
    scores: list[np.ndarray] = [np.zeros(0)] * len(sequences)
    for batch in length_batches(lengths, BATCH_TOKENS[model.device.type]):
        scored = _score(model, [sequences[i] for i in batch], [positions[i] for i in batch], keep)
        for i, values in zip(batch, scored, strict=True):
            scores[i] = values
        step(sum(len(positions[i]) for i in batch))
    return scores


def sequence_logprobs(
    model: "PreTrainedModel", sequences: Sequence[Sequence[int]], positions: Sequence[np.ndarray]
) -> np.ndarray:
    """Return the sums of :func:`token_logprobs` per sequence: nats, shape (sequences,), float64."""
    return np.array([scores.sum() for scores in token_logprobs(model, sequences, positions)], dtype=np.float64)


def length_batches(lengths: np.ndarray, tokens: int) -> Iterator[list[int]]:
    """Yield indices by similar length, so that rows x longest <= ``tokens`` (or one row).

    Zero lengths are left out. The grouping depends on the lengths alone, so two runs add up the same floats in the same
    order.
    """
    batch: list[int] = []
    for i in np.argsort(-lengths, kind="stable"):
        if lengths[i] == 0:
            break
        if batch and (len(batch) + 1) * lengths[batch[0]] > tokens:
            yield batch
            batch = []
        batch.append(int(i))
    if batch:
        yield batch


def _score(
    model: "PreTrainedModel", sequences: Sequence[Sequence[int]], positions: Sequence[np.ndarray],
    keep: "Callable[[Tensor], None]",
) -> list[np.ndarray]:  # fmt: skip
    import torch

    longest = max(int(asked[-1]) for asked in positions)
    inputs = torch.zeros(len(sequences), longest, dtype=torch.long)
    for row, (sequence, asked) in enumerate(zip(sequences, positions, strict=True)):
        inputs[row, : asked[-1]] = torch.as_tensor(sequence[: asked[-1]])
    rows = np.repeat(np.arange(len(sequences)), [len(asked) for asked in positions])
    columns = np.concatenate(positions) - 1
    targets = [sequence[p] for sequence, asked in zip(sequences, positions, strict=True) for p in asked]
    with torch.inference_mode():
        # A causal model never looks right, so padding on the right needs no mask and attention keeps its causal kernel.
        hidden = model.base_model(input_ids=inputs.to(model.device), use_cache=False).last_hidden_state
        hidden = hidden[torch.as_tensor(rows), torch.as_tensor(columns)]
        keep(hidden)
        parts = [
            -torch.nn.functional.cross_entropy(model.get_output_embeddings()(h).float(), t, reduction="none").cpu()
            for h, t in zip(
                hidden.split(HEAD_ROWS), torch.as_tensor(targets, device=model.device).split(HEAD_ROWS), strict=True
            )
        ]
    scores = torch.cat(parts).double().numpy()
    _require_finite(scores, model)
    return np.split(scores, np.cumsum([len(asked) for asked in positions])[:-1])


def _require_finite(scores: np.ndarray, model: "PreTrainedModel") -> None:
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise UserError(
            f"{model.name_or_path or 'the model'}: {bad} of {scores.size} log-probabilities are not finite; its "
            "training diverged. Lower the learning rate of the stage that made it."
        )
