"""Conversations and preference pairs as token ids in packed rows, with labels for what the assistant wrote."""

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, pairwise
from typing import NamedTuple

import numpy as np

from stages.corpus.packing import IGNORED, pack


class Chats(NamedTuple):
    """As `stages.corpus.packing.Rows`, and ``labels`` int32 (R, T): the assistant's tokens, IGNORED elsewhere."""

    tokens: np.ndarray
    cu_seqlens: np.ndarray
    filled: np.ndarray
    labels: np.ndarray


class PairRows(NamedTuple):
    """Chats of R rows: segments 2k and 2k + 1 of a row are a prompt with its chosen, and again with its rejected
    answer; ``pairs`` int32 (R,) is the number of them. A pair is never divided among rows."""

    tokens: np.ndarray
    cu_seqlens: np.ndarray
    filled: np.ndarray
    labels: np.ndarray
    pairs: np.ndarray


@dataclass(frozen=True)
class Pair:
    """Token ids of prompt and answer, twice, and the positions of the answers' tokens in them."""

    chosen: list[int]
    chosen_positions: np.ndarray
    rejected: list[int]
    rejected_positions: np.ndarray
    cut: bool  # something was left out to fit the context


def encode_chat(tokenizer, messages: list[dict], **options) -> dict[str, list[int]]:
    """``messages`` through the chat template: ``input_ids`` and what ``options`` ask for, as lists."""
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)


def render(tokenizer, messages: list[dict]) -> tuple[list[int], np.ndarray]:
    """Token ids of a conversation in the chat template, and the positions the assistant wrote.

    These are the tokens within the template's ``{% generation %}`` blocks, the end-of-turn token among them.
    """
    rendered = encode_chat(tokenizer, messages, return_assistant_tokens_mask=True)
    written = np.flatnonzero(rendered["assistant_masks"])
    return rendered["input_ids"], written[written > 0]


def encode_pair(tokenizer, record: dict, context: int) -> Pair:
    """A pair through the chat template; answers are what the assistant writes after the prompt.

    A prompt too long for the context loses its left part, the same for both answers, and an answer that alone is
    longer than the context loses its end.

    Args:
        context: positions a model reads; one token more is its last target.
    """
    prompt = len(encode_chat(tokenizer, record["prompt"], add_generation_prompt=True)["input_ids"])
    sides = []
    for side in ("chosen", "rejected"):
        ids, written = render(tokenizer, record["prompt"] + record[side])
        written = written[written >= prompt]
        sides.append((ids[: int(written[-1]) + 1] if len(written) else ids[:prompt], written))
    longest = max(len(ids) for ids, _ in sides)
    dropped = min(max(0, longest - (context + 1)), prompt - 1)
    (chosen, chosen_at), (rejected, rejected_at) = (
        (ids[dropped : dropped + context + 1], (at - dropped)[at - dropped <= context]) for ids, at in sides
    )
    return Pair(chosen, chosen_at, rejected, rejected_at, longest > context + 1)


def pack_chats(
    tokenizer, conversations: Sequence[list[dict]], row_tokens: int, seed: int,
    step: Callable[[int], None] = lambda done: None,
) -> tuple[Chats, dict[str, int]]:  # fmt: skip
    """(rows, counts of tokens, assistant_tokens, cut and no_answer_left conversations).

    A conversation longer than a row keeps its beginning; one in which no word of the assistant is left is set aside.

    Raises:
        ValueError: nothing is left.
    """
    counts, tokens, labels, lengths = {"cut": 0, "no_answer_left": 0}, [], [], []
    for messages in conversations:
        ids, written = render(tokenizer, messages)
        counts["cut"] += len(ids) > row_tokens
        ids, written = ids[:row_tokens], written[written < row_tokens]
        step(1)
        if not len(written):
            counts["no_answer_left"] += 1
            continue
        tokens.append(np.asarray(ids, _dtype(tokenizer)))
        labels.append(_labels(tokens[-1], written))
        lengths.append(len(ids))
    if not lengths:
        raise ValueError("no conversation holds a token that the assistant wrote")
    sizes = np.array(lengths, np.int64)
    rows = pack(np.concatenate(tokens), sizes, row_tokens, tokenizer.pad_token_id, seed)
    spoken = pack(np.concatenate(labels), sizes, row_tokens, IGNORED, seed).tokens
    counts |= {"tokens": int(sizes.sum()), "assistant_tokens": int((spoken != IGNORED).sum())}
    return Chats(*rows, spoken), counts


def pack_pairs(tokenizer, pairs: Sequence[Pair], row_tokens: int, seed: int) -> PairRows:
    """Rows of ``row_tokens``. Raises ValueError for a pair that does not fit into one."""
    sizes = np.array([len(pair.chosen) + len(pair.rejected) for pair in pairs], np.int64)
    if sizes.max() > row_tokens:
        raise ValueError(f"a pair of {sizes.max()} tokens does not fit into a row of {row_tokens}")
    sides = [np.asarray(ids, _dtype(tokenizer)) for pair in pairs for ids in (pair.chosen, pair.rejected)]
    written = [at for pair in pairs for at in (pair.chosen_positions, pair.rejected_positions)]
    labels = np.concatenate([_labels(ids, at) for ids, at in zip(sides, written, strict=True)])
    firsts = np.concatenate([np.arange(len(ids)) == 0 for ids in sides]).astype(np.uint8)
    rows = pack(np.concatenate(sides), sizes, row_tokens, tokenizer.pad_token_id, seed)
    spoken = pack(labels, sizes, row_tokens, IGNORED, seed).tokens
    begins = pack(firsts, sizes, row_tokens, 0, seed).tokens
    count = begins.sum(1, dtype=np.int32)
    segments = count + (rows.filled < row_tokens)
    cu_seqlens = np.full((len(begins), int(segments.max()) + 1), row_tokens, np.int32)
    row, at = np.nonzero(begins)
    cu_seqlens[row, np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)] = at
    short = rows.filled < row_tokens
    cu_seqlens[short, count[short]] = rows.filled[short]
    return PairRows(rows.tokens, cu_seqlens, rows.filled, spoken, count // 2)


def segments(rows: PairRows, r: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(prompts, answers) of row ``r``'s segments; an answer is int64 [2, length]: its tokens, and their labels."""
    prompts, answers = [], []
    bounds = rows.cu_seqlens[r][: 2 * rows.pairs[r] + 1]
    for a, b in pairwise(bounds):
        start = a + int(np.argmax(rows.labels[r, a:b] != IGNORED))
        prompts.append(rows.tokens[r, a:start])
        answers.append(np.stack([array[r, start:b].astype(np.int64) for array in (rows.tokens, rows.labels)]))
    return prompts, answers


def show(tokenizer, rows: Chats, count: int) -> str:
    """An HTML page of the first ``count`` conversations, what the assistant learns to say in colour."""
    pages = [_page(tokenizer, *conversation) for conversation in islice(_conversations(rows), count)]
    style = "pre{white-space:pre-wrap;border-bottom:1px solid;padding:1em}span{color:#777}mark{background:#b6f0b6}"
    title = "What the assistant learns to say is green; the rest is read and not learned"
    head = f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{style}</style><p>{title}.</p>"
    return "\n".join([head, *pages]) + "\n"


def _conversations(rows: Chats) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(token ids, labels) of each."""
    for tokens, ends, filled, labels in zip(*rows, strict=True):
        for a, b in pairwise(ends[ends <= filled]):
            if a < b:
                yield tokens[a:b], labels[a:b]


def _page(tokenizer, tokens: np.ndarray, labels: np.ndarray) -> str:
    parts = []
    for spoken, group in groupby(zip(tokens, labels, strict=True), lambda pair: pair[1] != IGNORED):
        tag = "mark" if spoken else "span"
        parts.append(f"<{tag}>{html.escape(tokenizer.decode([token for token, _ in group]))}</{tag}>")
    return f"<pre>{''.join(parts)}</pre>"


def _labels(ids: np.ndarray, written: np.ndarray) -> np.ndarray:
    labels = np.full(len(ids), IGNORED, np.int32)
    labels[written] = ids[written]
    return labels


def _dtype(tokenizer) -> type:
    return np.uint16 if len(tokenizer) <= 2**16 else np.uint32
