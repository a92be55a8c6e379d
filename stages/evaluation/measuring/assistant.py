"""Measure the loss on the assistant's words in held-out conversations."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stages.contract import UserError
from stages.corpus.chats.turns import encode_turns
from stages.evaluation.measuring.divergence import MOST_POSITIONS, Predictions
from stages.evaluation.measuring.scoring import token_logprobs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def openings(conversations: Iterable[list[dict[str, str]]]) -> list[list[dict[str, str]]]:
    """Return, of each conversation that asks something, the messages up to the assistant's first answer to a user.

    Without a user's turn the first answer counts; a conversation that is nothing but an answer has no opening.
    """
    asked = (messages[: _first_answer(messages)] for messages in conversations)
    return [messages for messages in asked if messages]


def _first_answer(messages: list[dict[str, str]]) -> int:
    roles = [message["role"] for message in messages]
    user = roles.index("user") if "user" in roles else 0
    return next((i for i in range(user, len(roles)) if roles[i] == "assistant"), len(roles))


def assistant_loss(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[list[dict[str, str]]]
) -> tuple[dict[str, float], Predictions, np.ndarray] | tuple[None, None, None]:
    """Return the mean - log p over the assistant's tokens, in nats, and the model's predictions at these or every k-th.

    A conversation longer than the context keeps its beginning, as in training; one in which no token of the
    assistant is left is dropped.

    Returns:
        ``nats_per_token``, ``tokens`` scored, ``cut`` and ``no_answer_left`` conversations; the predictions; each
        conversation's nats and tokens, shape (conversations, 2). All None: every conversation was dropped.

    Raises:
        UserError: the chat template marks nothing that the assistant wrote.
    """
    context = model.config.max_position_embeddings
    rendered = list(encode_turns(tokenizer, conversations))
    sequences = [ids for ids, _ in rendered]
    positions = [written[written <= context] for _, written in rendered]
    tokens = sum(len(asked) for asked in positions)
    if not any(len(written) for _, written in rendered):
        raise UserError(
            f"the chat template marks no assistant tokens in {len(conversations)} conversations; it needs "
            "{% generation %} blocks around the assistant's turns."
        )
    if tokens == 0:
        return None, None, None
    every, kept = -(-tokens // MOST_POSITIONS), []

    def keep(hidden: "Tensor") -> None:
        kept.append(hidden[::every].float().cpu().numpy())

    sums = [scores.sum() for scores in token_logprobs(model, sequences, positions, keep=keep)]
    head = model.get_output_embeddings().weight.detach().float().cpu().numpy()
    return (
        {
            "nats_per_token": -float(sum(sums)) / tokens,
            "tokens": tokens,
            "cut": sum(len(ids) > context + 1 for ids in sequences),
            "no_answer_left": sum(len(asked) == 0 for asked in positions),
        },
        Predictions(np.concatenate(kept), head),
        np.array([(-x, len(a)) for x, a in zip(sums, positions, strict=True)]),
    )
