"""Find the ends of sentences in UTF-8 text, in numba kernels: by final marks, abbreviations and case."""

from functools import cache

import numpy as np

from stages.corpus.text.characters import FINAL, LOWER, QUOTE, SPACE, SYMBOL, UPPER, read_character
from stages.corpus.text.hashing import sequence_hash
from stages.corpus.text.kernels import kernel

_DOT = 0x2E
# A full stop after one of these ends no sentence; nor does one after a single letter.
_TITLES = "Mr Mrs Ms Messrs Dr Prof Ph.D St Jr Sr Rev Gen Gov Sen Rep Adm Inc Co co Corp Ltd Bros vs e.g E.g i.e I.e"
_TIMES = "a.m p.m Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec"
ABBREVIATIONS = (*_TITLES.split(), *_TIMES.split())


@cache
def abbreviations() -> np.ndarray:
    """Return the hashes of ABBREVIATIONS (uint64), for `count_sentences`."""
    return np.array([sequence_hash(np.frombuffer(word.encode(), np.uint8)) for word in ABBREVIATIONS], np.uint64)


@kernel
def ends_with_mark(data: np.ndarray, a: int, b: int) -> bool:
    """Return whether a line ends with . ? ! or a quotation mark, and not with an ellipsis."""
    if b == a:
        return False
    last = data[b - 1]
    if last == _DOT:
        return not (b - a >= 3 and data[b - 2] == _DOT and data[b - 3] == _DOT)
    return last == 0x3F or last == 0x21 or last == 0x22 or last == 0x27


@kernel
def ends_with_any_mark(data: np.ndarray, a: int, b: int, classes: np.ndarray) -> bool:
    """Return whether a line ends with a sentence's final mark of any script, closing quotation marks aside."""
    while b > a:
        b -= 1
        while data[b] & 0xC0 == 0x80:
            b -= 1
        _, _, kind = read_character(data, b, classes)
        if kind & FINAL:
            return True
        if not kind & QUOTE:
            return False
    return False


@kernel
def count_sentences(data: np.ndarray, a: int, b: int, classes: np.ndarray, abbreviations: np.ndarray) -> int:
    """Count the sentences of a line: one, and one more at each word after a mark that ends a sentence."""
    count, ended = 1, False
    while a < b:
        head, tail, z, marked, content = b, a, a, False, False
        while z < b:
            _, width, kind = read_character(data, z, classes)
            if kind & SPACE:
                break
            if not kind & SYMBOL:
                head, tail = min(head, z), z + width
            z += width
            marked |= (kind & FINAL) != 0
            content |= not kind & QUOTE
        if marked:
            count, ended = _within(data, a, z, min(head, z), tail, classes, abbreviations, count, ended)
        elif ended and content:
            count, ended = count + 1, False
        a = z + width if z < b else z
    return count


@kernel
def _within(
    data: np.ndarray, a: int, z: int, head: int, tail: int, classes: np.ndarray, abbreviations: np.ndarray,
    count: int, ended: bool,
) -> tuple[int, bool]:  # fmt: skip
    """Update ``count`` and ``ended`` for the word data[a:z], which holds a final mark; its letters: data[head:tail]."""
    before = earlier = np.uint16(0)
    while a < z:
        code, width, kind = read_character(data, a, classes)
        if ended and not kind & QUOTE:
            count, ended = count + 1, False
        if kind & FINAL:
            if code == _DOT:
                ended |= _full_stop(data, a, z, head, tail, before, earlier, classes, abbreviations)
            else:
                ended |= a >= tail or a < head
        earlier, before = before, kind
        a += width
    return count, ended


@kernel
def _full_stop(
    data: np.ndarray, at: int, z: int, head: int, tail: int, before: int, earlier: int, classes: np.ndarray,
    abbreviations: np.ndarray,
) -> bool:  # fmt: skip
    """Return whether the dot at data[at], in the word that ends at ``z``, ends a sentence.

    It does not in an ellipsis, an abbreviation, an initial, or within a word, except between lower and upper case
    ("end.Next"). ``before`` and ``earlier`` are the classes of the two characters before it.
    """
    if (at > 0 and before != 0 and data[at - 1] == _DOT) or (at + 1 < z and data[at + 1] == _DOT):
        return False
    if at < tail:
        _, _, after = read_character(data, at + 1, classes)
        return (before & LOWER) != 0 and (after & UPPER) != 0
    if before & UPPER:
        return (earlier & UPPER) != 0
    if before & LOWER:
        if at == head + 1:
            return False
        word = sequence_hash(data[head:at])
        for abbreviation in abbreviations:
            if word == abbreviation:
                return False
    return True
