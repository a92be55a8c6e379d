"""What the rules look at, measured for every document in one pass.

Rae et al. 2021, arXiv 2112.11446, appendix A1.1. A word is a run of characters between white space, compared
as written; lengths are in characters (code points). Duplicates are second and later occurrences; lines and
paragraphs without a letter (rules, closing braces) are not looked at, for they repeat in any page with code.
"""

import unicodedata
from collections.abc import Callable
from functools import cache

import numpy as np

from stages.corpus.hashing import extend, mix, nonzero, slot, table_size
from stages.corpus.kernels import kernel
from stages.corpus.words import Texts, decode, in_threads

QUALITY = (
    "words",
    "mean_word_length",
    "symbol_ratio",
    "bullet_lines",
    "ellipsis_lines",
    "alphabetic_words",
    "stop_words",
)
REPETITION = (
    "duplicate_lines",
    "duplicate_paragraphs",
    "duplicate_line_characters",
    "duplicate_paragraph_characters",
    "top_2_gram",
    "top_3_gram",
    "top_4_gram",
    "duplicate_5_grams",
    "duplicate_6_grams",
    "duplicate_7_grams",
    "duplicate_8_grams",
    "duplicate_9_grams",
    "duplicate_10_grams",
)
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")

SPACE, ALPHABETIC, BULLET = 1, 2, 4
_ELLIPSIS, _HASH, _DOT, _NEWLINE = 0x2026, 0x23, 0x2E, 0x0A


def measure(documents: Texts, progress: Callable[[int], None] = lambda n: None) -> dict[str, np.ndarray]:
    """float64 (documents,) for each name of QUALITY and REPETITION.

    Shares are 0 where there is nothing to take a share of.
    """
    names = QUALITY + REPETITION
    values = np.zeros((len(documents.offsets) - 1, len(names)))

    def work(first: int, last: int) -> int:
        _measure(documents.data, documents.offsets, first, last, _classes(), _stop_hashes(), values)
        return last - first

    for done in in_threads(work, documents):
        progress(done)
    return dict(zip(names, values.T, strict=True))


@cache
def _classes() -> np.ndarray:
    """uint8 (65536,): SPACE, ALPHABETIC and BULLET bits of every character of the Basic Multilingual Plane."""
    table = np.zeros(1 << 16, np.uint8)
    for code in range(1 << 16):
        char = chr(code)
        table[code] = SPACE * char.isspace() + ALPHABETIC * (unicodedata.category(char)[0] in "LM")
    for char in "-*•‣◦▪·":
        table[ord(char)] |= BULLET
    return table


@cache
def _stop_hashes() -> np.ndarray:
    return np.array([_hash_letters(np.array([ord(c) for c in word], np.uint64)) for word in STOP_WORDS], np.uint64)


@kernel
def _hash_letters(codes):
    state = np.uint64(0)
    for code in codes:
        state = extend(state, code)
    return state


@kernel
def _measure(data, offsets, first, last, classes, stops, values):
    longest = 0
    for i in range(first, last):
        longest = max(longest, offsets[i + 1] - offsets[i])
    room = longest // 2 + 2
    words, word_lengths = np.empty(room, np.uint64), np.empty(room, np.int64)
    lines, line_lengths = np.empty(room, np.uint64), np.empty(room, np.int64)
    blocks, block_lengths = np.empty(room, np.uint64), np.empty(room, np.int64)
    keys = np.empty(table_size(room), np.uint64)
    counts = np.empty(table_size(room), np.int64)
    for i in range(first, last):
        row = values[i]
        count, characters = _words(data, offsets[i], offsets[i + 1], classes, stops, words, word_lengths, row)
        n_lines, n_blocks = _lines(
            data, offsets[i], offsets[i + 1], classes, lines, line_lengths, blocks, block_lengths, row
        )
        if characters == 0:
            continue
        row[7], row[9] = _duplicates(lines, line_lengths, n_lines, keys, characters)
        row[8], row[10] = _duplicates(blocks, block_lengths, n_blocks, keys, characters)
        grams = words.copy()
        for n in range(2, 11):
            if n > count:
                break
            for k in range(count - n + 1):
                grams[k] = nonzero(mix(extend(grams[k], words[k + n - 1])))
            if n < 5:
                row[9 + n] = _top(grams, word_lengths, count, n, keys, counts) / characters
            else:
                row[9 + n] = _repeated(grams, word_lengths, count, n, keys) / characters


@kernel
def _words(data, start, stop, classes, stops, words, lengths, row):
    """Hashes and lengths of the words, the word rules' values into row; number of words and of characters."""
    count = characters = total = alphabetic = hashes = ellipses = dots = 0
    state, letters, length, has_letter, found = np.uint64(0), np.uint64(0), 0, False, 0
    at = start
    while at < stop:
        code, width = decode(data, at)
        at += width
        characters += 1
        kind = classes[code] if code < 0x10000 else np.uint8(ALPHABETIC)
        hashes += code == _HASH
        dots = dots + 1 if code == _DOT else 0
        ellipses += dots == 3 or code == _ELLIPSIS
        space = (kind & SPACE) != 0
        if not space:
            state = extend(state, np.uint64(code))
            length += 1
            if kind & ALPHABETIC:
                has_letter = True
                letters = extend(letters, np.uint64(code | np.uint32(0x20) if code < 0x80 else code))
        if length > 0 and (space or at >= stop):
            words[count], lengths[count] = mix(state), length
            count += 1
            total += length
            alphabetic += has_letter
            for k in range(stops.shape[0]):
                if letters == stops[k]:
                    found |= 1 << k
            state, letters, length, has_letter = np.uint64(0), np.uint64(0), 0, False
    row[0] = count
    if count > 0:
        row[1] = total / count
        row[2] = max(hashes, ellipses) / count
        row[5] = alphabetic / count
    while found > 0:
        row[6] += found & 1
        found >>= 1
    return count, characters


@kernel
def _lines(data, start, stop, classes, lines, line_lengths, blocks, block_lengths, row):
    """Hashes and lengths of the lines and of the paragraphs (runs of non-blank lines) that have a letter, the
    line rules' shares of all non-blank lines into row; how many of each were stored."""
    n_lines = n_blocks = bullets = ellipses = written = 0
    block, block_length, block_letter = np.uint64(0), 0, False
    at = start
    while at < stop:
        state, length, dots, bullet, letter = np.uint64(0), 0, 0, False, False
        spaces = 0
        while at < stop:
            code, width = decode(data, at)
            at += width
            if code == _NEWLINE:
                break
            kind = classes[code] if code < 0x10000 else np.uint8(ALPHABETIC)
            if kind & SPACE:
                spaces += 1
                continue
            if length == 0:
                bullet = (kind & BULLET) != 0
                spaces = 0
            letter |= (kind & ALPHABETIC) != 0
            dots = 3 if code == _ELLIPSIS else (dots + 1 if code == _DOT and spaces == 0 else int(code == _DOT))
            for _ in range(min(spaces, 1)):
                state = extend(state, np.uint64(32))
            state = extend(state, np.uint64(code))
            length += spaces + 1
            spaces = 0
        if length > 0:
            if letter:
                lines[n_lines], line_lengths[n_lines] = nonzero(mix(state)), length
                n_lines += 1
            written += 1
            bullets += bullet
            ellipses += dots >= 3
            block, block_length, block_letter = extend(block, state), block_length + length, block_letter | letter
        if block_length > 0 and (length == 0 or at >= stop):
            if block_letter:
                blocks[n_blocks], block_lengths[n_blocks] = nonzero(mix(block)), block_length
                n_blocks += 1
            block, block_length, block_letter = np.uint64(0), 0, False
    if written > 0:
        row[3] = bullets / written
        row[4] = ellipses / written
    return n_lines, n_blocks


@kernel
def _duplicates(hashes, lengths, count, keys, characters):
    """Share of the elements, and of the document's characters, in elements that occurred before."""
    if count == 0:
        return 0.0, 0.0
    size = table_size(count)
    keys[:size] = 0
    elements = inside = 0
    for k in range(count):
        at = slot(keys, size, hashes[k])
        if keys[at] != 0:
            elements += 1
            inside += lengths[k]
        keys[at] = hashes[k]
    return elements / count, inside / characters


@kernel
def _top(grams, lengths, count, n, keys, counts):
    """Characters, with single spaces, in the most frequent n-gram that occurs at least twice; the longest of
    several equally frequent."""
    size = table_size(count)
    keys[:size] = 0
    most, best = 2, 0
    for k in range(count - n + 1):
        at = slot(keys, size, grams[k])
        counts[at] = counts[at] + 1 if keys[at] != 0 else 1
        keys[at] = grams[k]
        if counts[at] >= most:
            length = n - 1
            for j in range(n):
                length += lengths[k + j]
            best = max(best, length * counts[at]) if counts[at] == most else length * counts[at]
            most = counts[at]
    return best


@kernel
def _repeated(grams, lengths, count, n, keys):
    """Characters in n-grams that occurred before, none of them counted twice."""
    size = table_size(count)
    keys[:size] = 0
    inside, k = 0, 0
    while k <= count - n:
        at = slot(keys, size, grams[k])
        if keys[at] == 0:
            keys[at] = grams[k]
            k += 1
            continue
        for j in range(n):
            inside += lengths[k + j]
        k += n
    return inside
