"""Orders of training rows: a curriculum takes those that the tokenizer compresses well first.

A text's compression was among the best measures of its difficulty in Zhang et al. 2025, arXiv 2506.11300.
"""

from collections.abc import Callable

import numpy as np

from stages.corpus.tokens.packed_rows import Rows

AT_ONCE = 1024  # rows in memory


def difficulty(rows: Rows, vocabulary: dict[str, int]) -> np.ndarray:
    """Return the tokens per byte of each row's text, float64 (R,).

    Args:
        vocabulary: ids by token, byte-level: a letter of a token stands for a byte. Special tokens count like others.
    """
    sizes = np.zeros(max(vocabulary.values()) + 1, np.int64)
    sizes[list(vocabulary.values())] = [len(token) for token in vocabulary]
    shares = [np.zeros(0)]
    for first in range(0, len(rows.tokens), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        filled = rows.filled[some]
        real = np.arange(rows.tokens.shape[1]) < filled[:, None]
        shares.append(filled / (sizes[rows.tokens[some]] * real).sum(1))
    return np.concatenate(shares)


def easy_first(difficulty: np.ndarray, count: int) -> np.ndarray:
    """Return ``count`` row numbers, int64; every pass over the rows goes from the easiest to the hardest.

    A pass that is not whole takes rows at even distances: with little training the model sees hard rows too.
    """
    ranked = np.argsort(difficulty, kind="stable")
    whole, rest = divmod(count, len(ranked))
    some = ranked[np.arange(rest) * len(ranked) // max(1, rest)]
    return np.concatenate([*[ranked] * whole, some])


# pretrain.order -> (difficulty, count) -> row numbers; None: by chance, as the Trainer draws.
ORDERS: dict[str, Callable[[np.ndarray, int], np.ndarray] | None] = {"shuffled": None, "easy_first": easy_first}
