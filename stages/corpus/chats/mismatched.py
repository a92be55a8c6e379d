"""Give each prompt the answers to another one: KTO estimates its reference point from such rows."""

import numpy as np

from stages.corpus.chats.encoding import PairRows, segments
from stages.corpus.tokens.packed_rows import IGNORED


def mismatched(rows: PairRows) -> PairRows:
    """Return ``rows`` in which each pair has the answers of another pair of its row, a fixed shift away.

    A row keeps its tokens and its length; a prompt with its new answer may be longer than any true one. The shift is
    the first one with the fewest pairs of the same prompt. These pairs, and the only pair of a row, get the answers of
    the next pair with another prompt, from the next row on: cut to the length of the answers they replace, or so that
    prompt and answer fit into half the row.

    Raises:
        ValueError: all pairs have one prompt.
    """
    count, row_tokens = rows.tokens.shape
    tokens, labels, filled = np.array(rows.tokens), np.full_like(rows.labels, IGNORED), np.array(rows.filled)
    # A single pair may have filled its row and leave an end now: a third segment, a fourth boundary.
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
    """Return the answers that replace those of row ``r``'s segments."""
    names = [prompt.tobytes() for prompt in prompts[::2]]
    count, shift = len(names), _shift(names)
    replaced = answers[2 * shift :] + answers[: 2 * shift]
    for k, name in enumerate(names):
        if names[(k + shift) % count] != name:
            continue
        for i, answer in zip((2 * k, 2 * k + 1), _elsewhere(rows, r, name), strict=True):
            room = replaced[i].shape[1] if count > 1 else rows.tokens.shape[1] // 2 - len(prompts[i])
            replaced[i] = answer[:, :room]
    return replaced


def _shift(names: list[bytes]) -> int:
    """Return the first shift by which the fewest ``names`` meet themselves; 0 for a single one."""
    count = len(names)
    meet = {s: sum(names[k] == names[(k + s) % count] for k in range(count)) for s in range(1, count)}
    return min(meet, key=meet.__getitem__, default=0)


def _elsewhere(rows: PairRows, r: int, name: bytes) -> list[np.ndarray]:
    """Return both answers of the first pair whose prompt is not ``name``, from the next row on."""
    for distance in range(1, len(rows.pairs) + 1):
        prompts, answers = segments(rows, (r + distance) % len(rows.pairs))
        for i in range(0, len(prompts), 2):
            if prompts[i].tobytes() != name:
                return answers[i : i + 2]
    raise ValueError("all pairs have one prompt")
