"""The order of a curriculum: rows that the tokenizer compresses well are trained on first.

How well a text is compressed was among the best measures of its difficulty in Zhang et al. 2025, arXiv 2506.11300.
"""

import numpy as np

from stages.corpus.packing import Rows

AT_ONCE = 1024  # rows in memory


def difficulty(rows: Rows, vocabulary: dict[str, int]) -> np.ndarray:
    """float64 (R,): tokens of each row for a byte of its text.

    Args:
        vocabulary: ids by token, byte-level: a letter of a token stands for a byte. Special tokens count like others.
    """
    sizes = np.zeros(max(vocabulary.values()) + 1, np.int64)
    sizes[list(vocabulary.values())] = [len(token) for token in vocabulary]
    found = [np.zeros(0)]
    for first in range(0, len(rows.tokens), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        filled = rows.filled[some]
        real = np.arange(rows.tokens.shape[1]) < filled[:, None]
        found.append(filled / (sizes[rows.tokens[some]] * real).sum(1))
    return np.concatenate(found)


def easy_first(difficulty: np.ndarray, count: int) -> np.ndarray:
    """int64 (count,): rows one after another; every pass goes from the easiest to the hardest.

    A pass that is not whole takes rows at even distances: with little training the model sees hard ones too.
    """
    ranked = np.argsort(difficulty, kind="stable")
    whole, rest = divmod(count, len(ranked))
    some = ranked[np.arange(rest) * len(ranked) // max(1, rest)]
    return np.concatenate([*[ranked] * whole, some])
