"""Measure one model on all held-out data, as plain numbers and arrays, so that one model at a time is in memory."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.contract import Progress
from stages.corpus.chats.encoding import encode_pairs
from stages.corpus.chats.messages import Messages
from stages.corpus.chats.turns import encode_texts, encode_turns, turn_end
from stages.corpus.tokens.adoption import marks_of
from stages.evaluation.measuring import assistant, bits, choice, generation, harness, preferences
from stages.evaluation.measuring.divergence import Predictions
from stages.evaluation.measuring.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class HeldOutData:
    """The data that no model was trained on."""

    texts: list[dict[str, Any]]  # text, source
    chats: list[Messages]
    pairs: list[dict[str, Any]]  # id, prompt, chosen, rejected
    tasks: dict[str, list[Example]]
    not_run: dict[str, str]  # task -> why there are no examples of it


@dataclass(frozen=True)
class Answer:
    """A greedy answer to the opening of a conversation, without special tokens."""

    messages: Messages
    text: str
    ended: bool  # by an end of turn


@dataclass(frozen=True)
class Measured:
    """All that was measured on one model."""

    documents: list[list[int]]  # token ids of the texts
    prefix: int  # id of <|endoftext|>, from which a text's first token is predicted
    vocabulary: int
    nats: np.ndarray  # - log p of each text
    loss: dict[str, float] | None  # on the assistant's words; None without conversations
    predictions: Predictions | None
    chat_nats: np.ndarray | None  # nats and tokens of the assistant in each conversation, shape (conversations, 2)
    problems: list[str]  # of each pair, why it is dropped; "": it is not
    pairs: np.ndarray  # log-probabilities of the pairs without a problem, shape (pairs, 2), in nats
    lengths: np.ndarray  # their tokens, shape (pairs, 2)
    cut: int  # how many of them are cut to the context
    answers: list[Answer]
    tasks: dict[str, dict[str, float]]
    examples: list[dict[str, Any]]


def measure_model(
    name: str, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", data: HeldOutData, prompts: int,
    new_tokens: int,
) -> Measured:  # fmt: skip
    """Measure bits, conversations, preferences, answers and tasks.

    Args:
        name: of the model, for the progress line.
        data: the held-out data.
        prompts: conversations answered greedily.
        new_tokens: tokens of each answer at most.

    Raises:
        UserError: the chat template ends no turn, or a log-probability is not finite.
    """
    prefix = marks_of(tokenizer).begin
    documents = encode_texts(tokenizer, [d["text"] for d in data.texts])
    encoded = list(encode_pairs(tokenizer, data.pairs, model.config.max_position_embeddings))
    pairs = [pair for pair in encoded if not pair.problem]
    progress = Progress(f"bits per byte, {name}", sum(map(len, documents)), "tokens")
    nats = bits.document_nats(model, documents, prefix, progress.step)
    tasks, examples = harness.evaluate(model, tokenizer, prefix, data.tasks)
    chats = data.chats
    loss, predictions, chat_nats = assistant.assistant_loss(model, tokenizer, chats) if chats else (None, None, None)
    return Measured(
        documents=documents,
        prefix=prefix,
        vocabulary=len(tokenizer),
        nats=nats,
        loss=loss,
        predictions=predictions,
        chat_nats=chat_nats,
        problems=[pair.problem for pair in encoded],
        pairs=preferences.answer_logprobs(model, pairs),
        lengths=preferences.answer_lengths(pairs),
        cut=sum(pair.cut for pair in pairs),
        answers=greedy_answers(model, tokenizer, chats, prompts, new_tokens),
        tasks=tasks,
        examples=examples,
    )


def greedy_answers(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", chats: list[Messages], prompts: int, new_tokens: int
) -> list[Answer]:
    """Answer the openings of ``prompts`` conversations, with at most ``new_tokens`` tokens each."""
    stop = turn_end(tokenizer)
    asked = choice.spread(assistant.openings(chats), prompts)
    ids = [ids for ids, _ in encode_turns(tokenizer, asked, opening=True)]
    generated = generation.greedy(model, ids, new_tokens, stop)
    return [
        Answer(messages, tokenizer.decode(tokens, skip_special_tokens=True), tokens[-1] == stop)
        for messages, tokens in zip(asked, generated, strict=True)
    ]
