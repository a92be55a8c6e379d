"""Prompts followed by the answers to other prompts: what KTO's reference point is estimated from."""

import numpy as np

from stages.corpus.chats import PairRows, segments
from stages.corpus.packing import IGNORED


def mismatched(rows: PairRows) -> PairRows:
    """``rows`` in which each pair has the answers of another pair of its row, so many places further on.

    A row keeps its tokens and its length; a prompt and its new answer may together be longer than any that belong
    together. Where that pair has the same prompt (of the shifts, the first with fewest such is taken), and in a row
    with a single pair, the answers are those of the next pair, from the next row on, that has another; cut to the
    length of what they stand for, or so that each fits behind the prompt into half the row.

    Raises:
        ValueError: all pairs have one prompt.
    """
    count, row_tokens = rows.tokens.shape
    tokens, labels, filled = np.array(rows.tokens), np.full_like(rows.labels, IGNORED), np.array(rows.filled)
    # A pair alone may have filled its row and leave an end now: a third segment, a fourth boundary.
    cu_seqlens = np.full((count, max(rows.cu_seqlens.shape[1], 4)), row_tokens, np.int32)
    for r in range(count):
        prompts, answers = segments(rows, r)
        answers = _others(rows, r, prompts, answers)
        at = cu_seqlens[r, 0] = 0
        for k, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            start, end = at + len(prompt), at + len(prompt) + answer.shape[1]
            tokens[r, at:start] = prompt
            tokens[r, start:end], labels[r, start:end] = answer
            at = cu_seqlens[r, k + 1] = end
        filled[r] = at
    return PairRows(tokens, cu_seqlens, filled, labels, np.array(rows.pairs))


def _others(rows: PairRows, r: int, prompts: list[np.ndarray], answers: list[np.ndarray]) -> list[np.ndarray]:
    """The answers that row ``r``'s segments get instead of their own."""
    names = [prompt.tobytes() for prompt in prompts[::2]]
    count, shift = len(names), _shift(names)
    given = answers[2 * shift :] + answers[: 2 * shift]
    for k, name in enumerate(names):
        if names[(k + shift) % count] != name:
            continue
        for i, answer in zip((2 * k, 2 * k + 1), _elsewhere(rows, r, name), strict=True):
            room = given[i].shape[1] if count > 1 else rows.tokens.shape[1] // 2 - len(prompts[i])
            given[i] = answer[:, :room]
    return given


def _shift(names: list[bytes]) -> int:
    """The first of the shifts by which fewest of ``names`` meet themselves; 0 of a single one."""
    count = len(names)
    meet = {s: sum(names[k] == names[(k + s) % count] for k in range(count)) for s in range(1, count)}
    return min(meet, key=meet.get, default=0)


def _elsewhere(rows: PairRows, r: int, name: bytes) -> list[np.ndarray]:
    """Both answers of the first pair whose prompt is not ``name``, from the next row on."""
    for distance in range(1, len(rows.pairs) + 1):
        prompts, answers = segments(rows, (r + distance) % len(rows.pairs))
        for i in range(0, len(prompts), 2):
            if prompts[i].tobytes() != name:
                return answers[i : i + 2]
    raise ValueError("all pairs have one prompt")
