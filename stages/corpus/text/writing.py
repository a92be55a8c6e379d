"""Describe how languages are written, as far as the filter rules depend on it.

Gopher's, C4's and FineWeb's rules were made for English. Some need what other languages lack: English stop words,
words of three to ten letters, spaces between words, full stops.
"""

from typing import NamedTuple

import numpy as np

from stages.corpus.text.characters import SPACE, classes
from stages.corpus.text.kernels import kernel
from stages.corpus.text.words import ALONE, SKIPPED, Texts, decode, fold_table

ENGLISH = "en"
SPACELESS = frozenset({"zh", "wuu", "yue", "ja", "th", "lo", "km", "my"})  # written without spaces between words
UNMARKED = frozenset({"th", "lo"})  # without a mark at a sentence's end

SEPARATOR = 0x1F  # white space to every rule, not a line's end, and in no text


class Writing(NamedTuple):
    """How a language is written: English, with spaces between words, with marks at the ends of sentences."""

    english: bool
    spaces: bool
    marks: bool


EVERYDAY = Writing(english=True, spaces=True, marks=True)


def writing(language: str) -> Writing:
    """Return the writing of ``language`` (a code of the detector)."""
    return Writing(language == ENGLISH, language not in SPACELESS, language not in UNMARKED)


def spaced(documents: Texts) -> Texts:
    """Insert SEPARATOR between words of scripts without spaces, so that rules can count them.

    It comes before each character that is a word of its own to `hash_words`, and between such a character and another
    word. Punctuation stays with the word before it.
    """
    data, offsets = documents
    out, bounds = np.empty(2 * int(offsets[-1] - offsets[0]), np.uint8), np.zeros(len(offsets), np.int64)
    filled = _spaced(data, offsets, fold_table(), classes(), out, bounds)
    return Texts(out[:filled].copy(), bounds)


def closed(documents: Texts) -> Texts:
    """Remove each SEPARATOR: the inverse of `spaced`."""
    kept = documents.data != SEPARATOR
    return Texts(documents.data[kept], np.append(0, np.cumsum(kept))[documents.offsets])


@kernel
def _spaced(
    data: np.ndarray, offsets: np.ndarray, fold: np.ndarray, classes: np.ndarray, out: np.ndarray, bounds: np.ndarray
) -> int:
    alone_before: bool | np.bool_
    filled = 0
    for i in range(offsets.shape[0] - 1):
        at, alone_before, space_before = offsets[i], False, True
        while at < offsets[i + 1]:
            code, width = decode(data, at)
            entry = fold[code] if code < 0x10000 else np.uint32(code)
            alone = entry >= ALONE or 0x20000 <= code < 0x40000
            space = code < 0x10000 and (classes[code] & SPACE) != 0
            visible = entry != SKIPPED
            if not space_before and visible and (alone or (alone_before and entry != 0 and not space)):
                out[filled] = SEPARATOR
                filled += 1
            for k in range(at, at + width):
                out[filled] = data[k]
                filled += 1
            if visible:
                alone_before = alone or (alone_before and entry == 0 and not space)
                space_before = space
            at += width
        bounds[i + 1] = filled
    return filled
