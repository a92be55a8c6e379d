"""Held-out conversations: the loss on what the assistant says, and whether it stops."""

from collections.abc import Sequence

import numpy as np

from stages.contract import UserError
from stages.corpus.chats import encode_chat, render
from stages.evaluation.divergence import MOST_POSITIONS, Predictions
from stages.evaluation.scoring import token_logprobs


def opening(tokenizer, messages: list[dict]) -> list[int]:
    """Token ids of the turns before the assistant's first and the start of its answer; empty without such turns."""
    first = next((i for i, turn in enumerate(messages) if turn["role"] == "assistant"), len(messages))
    return encode_chat(tokenizer, messages[:first], add_generation_prompt=True)["input_ids"] if first else []


def assistant_loss(model, tokenizer, conversations: Sequence[list[dict]]) -> tuple[dict[str, float], Predictions]:
    """Mean - log p over all tokens of the assistant, in nats, and what the model predicts at these, or at every k-th.

    A conversation longer than the context keeps its beginning, as in training; one in which no token of the
    assistant is left is set aside.

    Returns:
        ``nats_per_token``, ``tokens`` scored, ``cut`` and ``set_aside`` conversations; and the predictions.

    Raises:
        UserError: nothing is left to score.
    """
    context = model.config.max_position_embeddings
    rendered = [render(tokenizer, messages) for messages in conversations]
    sequences = [ids for ids, _ in rendered]
    positions = [written[written <= context] for _, written in rendered]
    tokens = sum(len(asked) for asked in positions)
    if tokens == 0:
        raise UserError(
            f"the chat template marks no assistant tokens in {len(conversations)} conversations; it needs "
            "{% generation %} blocks around the assistant's turns."
        )
    every, kept = -(-tokens // MOST_POSITIONS), []

    def keep(hidden) -> None:
        kept.append(hidden[::every].float().cpu().numpy())

    total = sum(scores.sum() for scores in token_logprobs(model, sequences, positions, keep=keep))
    head = model.get_output_embeddings().weight.detach().float().cpu().numpy()
    return {
        "nats_per_token": -float(total) / tokens,
        "tokens": tokens,
        "cut": sum(len(ids) > context + 1 for ids in sequences),
        "set_aside": sum(len(asked) == 0 for asked in positions),
    }, Predictions(np.concatenate(kept), head)
