"""Normalize Unicode for the comparison of words; stored texts stay as written.

A letter has several spellings that look alike: composed or decomposed, full or half width, a ligature, a presentation
form. Words are compared in NFC, after compatibility forms (NFKC) of letters, digits and marks are resolved. Symbols
stay: NFKC would turn them into words (™ into TM). Unicode Standard Annex 15.
"""

import re
import unicodedata
from functools import cache
from itertools import chain, pairwise

import numpy as np

from stages.corpus.text.kernels import kernel
from stages.corpus.text.words import Texts, decode

# Bits of a code point's kind, above a byte for its combining class.
CHANGES, FIRST, SECOND, COMPATIBLE = (1 << bit for bit in range(8, 12))
CLASS = 0xFF
BLOCK = 64  # bytes
# Code points with another form; those between and after these ranges have none (Unicode 15 to 17).
_RANGES = (range(0x20000), range(0x2F800, 0x2FA20))
# Hangul composes by rule, not by table: consonant and vowel, their syllable and a last consonant.
_FIRST = (*range(0x1100, 0x1113), *range(0xAC00, 0xD7A4, 28))
_SECOND = (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))
# In every Thai and Lao text: replacing them directly is faster than the pattern of 3,000 code points (10 MB/s).
_FREQUENT = {name: unicodedata.normalize("NFKC", name) for name in ("\u0e33", "\u0eb3")}


def folded(documents: Texts) -> Texts:
    """Return ``documents`` in the form in which words are compared, copied only if one is in another form.

    No newline is added or removed.
    """
    data, offsets = documents
    kinds = np.zeros(len(offsets) - 1, np.uint16)
    _find_changes(data, offsets, _table(), kinds)
    rows = np.flatnonzero(kinds)
    if not len(rows):
        return documents
    pieces, sizes, at = [], np.diff(offsets), offsets[0]
    for row in rows:
        start, stop = offsets[row], offsets[row + 1]
        text = fold(data[start:stop].tobytes().decode(), bool(kinds[row] & COMPATIBLE)).encode()
        pieces += [data[at:start], np.frombuffer(text, np.uint8)]
        sizes[row], at = len(text), stop
    return Texts(np.concatenate([*pieces, data[at : offsets[-1]]]), np.append(0, np.cumsum(sizes)))


def fold(text: str, compatible: bool = True) -> str:
    """Return ``text`` in the form in which words are compared; ``compatible``: it may have compatibility forms."""
    for name, form in _FREQUENT.items():
        text = text.replace(name, form)
    if compatible:
        text = _compatible().sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    return unicodedata.normalize("NFC", text)


@cache
def _compatible() -> re.Pattern[str]:
    """Return the pattern of a letter, digit or mark that NFKC replaces."""
    codes = [code for code in chain(*_RANGES) if _replaced(chr(code))]
    bounds = [k for k, (a, b) in enumerate(pairwise(codes), 1) if b != a + 1]
    runs = [(codes[a], codes[b - 1]) for a, b in pairwise([0, *bounds, len(codes)])]
    return re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in runs) + "]")


def _replaced(character: str) -> bool:
    word = ord(character) >= 0x10000 or unicodedata.category(character)[0] in "LNM"
    return word and not unicodedata.is_normalized("NFKC", character)


@cache
def _table() -> np.ndarray:
    """Return the kind of each code point, uint16 (0x110000,): its combining class and bits.

    CHANGES: it has another form. COMPATIBLE: a form that NFC keeps. FIRST, SECOND: of two code points that compose.
    """
    table = np.zeros(0x110000, np.uint16)
    table[[*_FIRST]], table[[*_SECOND]] = FIRST, SECOND
    for code in chain(*_RANGES):
        character = chr(code)
        table[code] |= unicodedata.combining(character)
        if _replaced(character):
            table[code] |= CHANGES
            table[code] |= COMPATIBLE * (character not in _FREQUENT and unicodedata.is_normalized("NFC", character))
        parts = unicodedata.decomposition(character).split()
        if len(parts) == 2 and parts[0][0] != "<" and unicodedata.is_normalized("NFC", character):
            table[int(parts[0], 16)] |= FIRST
            table[code] |= FIRST  # a mark of a lower class goes before its own: \u00e9 + \u0323 is \u1eb9 + \u0301
            table[int(parts[1], 16)] |= SECOND
    return table


@kernel
def _behind_ascii(data: np.ndarray, at: int, stop: int) -> int:
    """Return the place of the next byte that is not ASCII, or ``stop``; by vector instructions, 3 GB/s."""
    while at + BLOCK <= stop:
        high = np.uint8(0)
        for byte in data[at : at + BLOCK]:
            high |= byte
        if high >= 0x80:
            break
        at += BLOCK
    while at < stop and data[at] < 0x80:
        at += 1
    return at


@kernel
def _find_changes(data: np.ndarray, offsets: np.ndarray, table: np.ndarray, kinds: np.ndarray) -> None:
    """Set ``kinds`` (uint16, documents) to CHANGES (and COMPATIBLE) for texts that may be in another form.

    A letter has another form, a mark may compose with the character before it, or marks are not in the order of their
    classes.
    """
    for i in range(kinds.shape[0]):
        at, last = offsets[i], np.uint16(0)
        while at < offsets[i + 1]:
            if data[at] < 0x80:
                at = _behind_ascii(data, at, offsets[i + 1])
                last = np.uint16(FIRST)
                continue
            code, width = decode(data, at)
            at += width
            kind = table[code]
            composes = kind & SECOND and last & (FIRST | CLASS)
            if kind & CHANGES or composes or 0 < kind & CLASS < last & CLASS:
                kinds[i] |= CHANGES | (kind & COMPATIBLE)
                if kind & COMPATIBLE:
                    break
            last = kind
