"""Prompts followed by the answers to other prompts: what KTO's reference point is estimated from."""

from itertools import pairwise

import numpy as np

from stages.corpus.chats import PairRows
from stages.corpus.packing import IGNORED


def mismatched(rows: PairRows) -> PairRows:
    """``rows`` in which pair k of a row has the answers of the row's pair k + 1, and the last those of the first.

    A row keeps its tokens and its length; a prompt and its new answer may together be longer than any that belong
    together. A row with a single pair gets the answers of the next row's first pair, cut so that each fits behind
    the prompt into half the row.

    Raises:
        ValueError: there is only one pair.
    """
    if rows.pairs.sum() < 2:
        raise ValueError("a single pair has no other's answers")
    count, row_tokens = rows.tokens.shape
    tokens, labels, filled = np.array(rows.tokens), np.full_like(rows.labels, IGNORED), np.array(rows.filled)
    # A pair alone may have filled its row and leave an end now: a third segment, a fourth boundary.
    cu_seqlens = np.full((count, max(rows.cu_seqlens.shape[1], 4)), row_tokens, np.int32)
    for r in range(count):
        prompts, answers = _parts(rows, r)
        if rows.pairs[r] > 1:
            answers = answers[2:] + answers[:2]
        else:
            answers = [
                answer[:, : row_tokens // 2 - len(prompts[0])] for answer in _parts(rows, (r + 1) % count)[1][:2]
            ]
        at = cu_seqlens[r, 0] = 0
        for k, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            start, end = at + len(prompt), at + len(prompt) + answer.shape[1]
            tokens[r, at:start] = prompt
            tokens[r, start:end], labels[r, start:end] = answer
            at = cu_seqlens[r, k + 1] = end
        filled[r] = at
    return PairRows(tokens, cu_seqlens, filled, labels, np.array(rows.pairs))


def _parts(rows: PairRows, r: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(prompts, answers) of row ``r``'s segments; an answer is int64 [2, length]: its tokens, and their labels."""
    prompts, answers = [], []
    bounds = rows.cu_seqlens[r][: 2 * rows.pairs[r] + 1]
    for a, b in pairwise(bounds):
        start = a + int(np.argmax(rows.labels[r, a:b] != IGNORED))
        prompts.append(rows.tokens[r, a:start])
        answers.append(np.stack([array[r, start:b].astype(np.int64) for array in (rows.tokens, rows.labels)]))
    return prompts, answers
