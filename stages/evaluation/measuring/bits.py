"""Bits per byte: the loss of a language model on text, comparable across tokenizers.

    bits per byte = - sum over tokens of log2 p(token | earlier tokens) / number of UTF-8 bytes

Windows follow lm-evaluation-harness (``loglikelihood_rolling``, Biderman et al. 2024, arXiv:2405.14782): documents are
scored one by one, each token exactly once. The first token of a document is predicted from <|endoftext|>, which
closes the document before it in a training row. A document longer than the context is cut into windows of as many
predicted tokens as the context has; each window's inputs are the tokens just before, and only the last window,
being shorter, is filled up with earlier tokens as context. The end of the document is not predicted.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stages.evaluation.measuring.scoring import token_logprobs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def rolling_windows(tokens: Sequence[int], prefix: int, context: int) -> Iterator[tuple[list[int], np.ndarray]]:
    """(sequence, positions to predict) for :func:`stages.evaluation.measuring.scoring.token_logprobs`.

    Over all windows each token of ``tokens`` is predicted once; a sequence has at most ``context`` + 1 tokens.
    """
    stream = [prefix, *tokens]
    for begin in range(1, len(stream), context):
        end = min(begin + context, len(stream))
        first = max(0, end - 1 - context)
        yield stream[first:end], np.arange(begin, end) - first


def document_nats(
    model: "PreTrainedModel", documents: Sequence[Sequence[int]], prefix: int,
    step: Callable[[int], None] = lambda done: None,
) -> np.ndarray:  # fmt: skip
    """- log p of each tokenized document in nats: shape (documents,), float64; 0 for an empty one."""
    sequences, positions, owner = [], [], []
    for i, tokens in enumerate(documents):
        for sequence, asked in rolling_windows(tokens, prefix, model.config.max_position_embeddings):
            sequences.append(sequence)
            positions.append(asked)
            owner.append(i)
    sums = [scores.sum() for scores in token_logprobs(model, sequences, positions, step)]
    return -np.bincount(np.array(owner, dtype=np.int64), weights=sums, minlength=len(documents))


def bits_per_byte(nats: np.ndarray, sizes: np.ndarray, sources: Sequence[str]) -> dict[str, float]:
    """Bits per byte by source, and ``overall``.

    Args:
        nats: - log p of each document, shape (documents,).
        sizes: its UTF-8 bytes, shape (documents,).
        sources: the domain it belongs to.
    """
    bits = np.asarray(nats, dtype=np.float64) / np.log(2)
    labels = np.asarray(sources)
    result = {"overall": float(bits.sum() / sizes.sum())}
    for source in sorted(set(sources)):
        chosen = labels == source
        result[source] = float(bits[chosen].sum() / sizes[chosen].sum())
    return result
