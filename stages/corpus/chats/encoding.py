"""Encode and pack conversations and preference pairs, with labels for the assistant's tokens."""

import html
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stages.corpus.chats.forms import PAIRED
from stages.corpus.chats.turns import encode_turns
from stages.corpus.tokens.packed_rows import IGNORED
from stages.corpus.tokens.packing import pack

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Chats(NamedTuple):
    """`stages.corpus.tokens.packed_rows.Rows` with ``labels`` int32 (R, T): assistant tokens, IGNORED elsewhere."""

    tokens: np.ndarray
    cu_seqlens: np.ndarray
    filled: np.ndarray
    labels: np.ndarray


class PairRows(NamedTuple):
    """`Chats` of pairs: segments 2k and 2k + 1 of a row are a prompt with its chosen and with its rejected answer.

    ``pairs`` int32 (R,) counts them. A pair is never divided among rows.
    """

    tokens: np.ndarray
    cu_seqlens: np.ndarray
    filled: np.ndarray
    labels: np.ndarray
    pairs: np.ndarray


@dataclass(frozen=True)
class Pair:
    """Token ids of the prompt with either answer, and the positions of the answers' tokens in them."""

    chosen: list[int]
    chosen_positions: np.ndarray
    rejected: list[int]
    rejected_positions: np.ndarray
    cut: bool  # to fit the context

    @property
    def problem(self) -> str:
        """Return why a model cannot learn from this pair; "" if it can."""
        if not len(self.chosen_positions) or not len(self.rejected_positions):
            return "no answer left"
        return "answers are the same once cut" if self.chosen == self.rejected else ""


def encode_chat(
    tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], add_generation_prompt: bool = False
) -> dict[str, list[int]]:
    """Return ``input_ids`` of ``messages`` in the chat template, as transformers' `apply_chat_template` names them."""
    return {"input_ids": next(encode_turns(tokenizer, [messages], add_generation_prompt))[0]}


def render(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]]) -> tuple[list[int], np.ndarray]:
    """Return the token ids of one conversation and the positions the assistant wrote, as `encode_turns`."""
    return next(encode_turns(tokenizer, [messages]))


def encode_pair(tokenizer: "PreTrainedTokenizerBase", record: dict[str, Any], context: int) -> Pair:
    """Encode one pair, as `encode_pairs`."""
    return next(encode_pairs(tokenizer, [record], context))


def encode_pairs(
    tokenizer: "PreTrainedTokenizerBase", records: Sequence[dict[str, Any]], context: int
) -> Iterator[Pair]:
    """Encode pairs by the chat template; an answer is the assistant's text after the prompt.

    A prompt too long for the context loses its beginning, the same for both answers. An answer longer than the context
    loses its end.

    Args:
        records: each with ``prompt``, ``chosen`` and ``rejected``, lists of messages.
        context: positions that a model reads; the token after them is its last target.
    """
    starts = encode_turns(tokenizer, (record["prompt"] for record in records), opening=True)
    sides = encode_turns(tokenizer, (record["prompt"] + record[side] for record in records for side in PAIRED))
    for start, _ in starts:
        yield _fitted(len(start), [next(sides), next(sides)], context)


def problems(records: Sequence[dict[str, Any]], pairs: Sequence[Pair]) -> dict[str, int]:
    """Count records whose pair has a `problem`, by problem; copies of a record count once."""
    by_record = {id(record): pair.problem for record, pair in zip(records, pairs, strict=True)}
    return dict(sorted(Counter(problem for problem in by_record.values() if problem).items()))


def _fitted(prompt: int, rendered: list[tuple[list[int], np.ndarray]], context: int) -> Pair:
    """Cut a pair whose prompt has so many tokens to ``context``; ``rendered``: both sides, from `encode_turns`."""
    sides = []
    for ids, written in rendered:
        written = written[written >= prompt]
        sides.append((ids[: int(written[-1]) + 1] if len(written) else ids[:prompt], written))
    longest = max(len(ids) for ids, _ in sides)
    dropped = min(max(0, longest - (context + 1)), prompt - 1)
    (chosen, chosen_at), (rejected, rejected_at) = (
        (ids[dropped : dropped + context + 1], (at - dropped)[at - dropped <= context]) for ids, at in sides
    )
    return Pair(chosen, chosen_at, rejected, rejected_at, longest > context + 1)


def pack_chats(
    tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[list[dict[str, str]]], row_tokens: int, seed: int,
    step: Callable[[int], None] = lambda done: None,
) -> tuple[Chats, dict[str, int]]:  # fmt: skip
    """Pack conversations; return rows and counts (conversations, cut, no_answer_left, tokens, assistant_tokens).

    A conversation longer than a row keeps its beginning. It is dropped if the assistant has no token left;
    ``no_answer_left`` counts copies of a dropped conversation once.

    Args:
        tokenizer: with a chat template.
        conversations: lists of {role, content}.
        row_tokens: length of a row.
        seed: of the packing.
        step: called with the conversations done since the last call.

    Raises:
        ValueError: no conversation is left.
    """
    tokens: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    lengths: list[int] = []
    unanswered: set[int] = set()
    cut = 0
    for messages, (ids, written) in zip(conversations, encode_turns(tokenizer, conversations), strict=True):
        cut += len(ids) > row_tokens
        ids, written = ids[:row_tokens], written[written < row_tokens]
        step(1)
        if not len(written):
            unanswered.add(id(messages))
            continue
        tokens.append(np.asarray(ids, _dtype(tokenizer)))
        labels.append(_labels(tokens[-1], written))
        lengths.append(len(ids))
    if not lengths:
        raise ValueError("no conversation holds a token that the assistant wrote")
    sizes = np.array(lengths, np.int64)
    rows = pack(np.concatenate(tokens), sizes, row_tokens, tokenizer.pad_token_id, seed)
    spoken = pack(np.concatenate(labels), sizes, row_tokens, IGNORED, seed).tokens
    return Chats(*rows, spoken), {
        "conversations": len(sizes),
        "cut": cut,
        "no_answer_left": len(unanswered),
        "tokens": int(sizes.sum()),
        "assistant_tokens": int((spoken != IGNORED).sum()),
    }


def pack_pairs(tokenizer: "PreTrainedTokenizerBase", pairs: Sequence[Pair], row_tokens: int, seed: int) -> PairRows:
    """Pack pairs into rows of ``row_tokens``. Raises ValueError for a pair that does not fit into one."""
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
    """Return prompts and answers of row ``r``'s segments; an answer is int64 [2, length]: tokens and labels."""
    prompts, answers = [], []
    bounds = rows.cu_seqlens[r][: 2 * rows.pairs[r] + 1]
    for a, b in pairwise(bounds):
        start = a + int(np.argmax(rows.labels[r, a:b] != IGNORED))
        prompts.append(rows.tokens[r, a:start])
        answers.append(np.stack([array[r, start:b].astype(np.int64) for array in (rows.tokens, rows.labels)]))
    return prompts, answers


def chat_page(tokenizer: "PreTrainedTokenizerBase", rows: Chats, count: int) -> str:
    """Return an HTML page of the first ``count`` conversations, with the labeled tokens in color."""
    pages = [_page(tokenizer, *conversation) for conversation in islice(_conversations(rows), count)]
    style = "pre{white-space:pre-wrap;border-bottom:1px solid;padding:1em}span{color:#777}mark{background:#b6f0b6}"
    title = "The assistant's words, which are learned, are green; the rest is only read"
    head = f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{style}</style><p>{title}.</p>"
    return "\n".join([head, *pages]) + "\n"


def _conversations(rows: Chats) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield token ids and labels of each conversation."""
    for tokens, ends, filled, labels in zip(*rows, strict=True):
        for a, b in pairwise(ends[ends <= filled]):
            if a < b:
                yield tokens[a:b], labels[a:b]


def _page(tokenizer: "PreTrainedTokenizerBase", tokens: np.ndarray, labels: np.ndarray) -> str:
    parts = []
    for spoken, group in groupby(zip(tokens, labels, strict=True), lambda pair: pair[1] != IGNORED):
        tag = "mark" if spoken else "span"
        parts.append(f"<{tag}>{html.escape(tokenizer.decode([token for token, _ in group]))}</{tag}>")
    return f"<pre>{''.join(parts)}</pre>"


def _labels(ids: np.ndarray, written: np.ndarray) -> np.ndarray:
    labels = np.full(len(ids), IGNORED, np.int32)
    labels[written] = ids[written]
    return labels


def _dtype(tokenizer: "PreTrainedTokenizerBase") -> type[np.unsignedinteger]:
    return np.uint16 if len(tokenizer) <= 2**16 else np.uint32
