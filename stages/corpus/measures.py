"""What Gopher's rules look at, measured for every document in one pass.

Rae et al. 2021, arXiv 2112.11446, appendix A1.1. A word is a run of characters between white space, compared
as written; lengths are in characters (code points). Duplicates are second and later occurrences. The paper leaves
open what else counts: here lines and paragraphs without a letter (rules, closing braces) are not looked at, for they
repeat in any page with code, and a stop word may stand beside punctuation; `published` has the other reading.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

from stages.corpus.characters import ALPHABETIC, BULLET, SPACE, classes
from stages.corpus.hashing import extend, mix, nonzero, slot, table_size
from stages.corpus.kernels import kernel
from stages.corpus.published import published_lines, published_words
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

_ELLIPSIS, _HASH, _DOT, _NEWLINE = 0x2026, 0x23, 0x2E, 0x0A


def measure(
    documents: Texts, published: bool = False, progress: Callable[[int], None] = lambda n: None
) -> dict[str, np.ndarray]:
    """float64 (documents,) for each name of QUALITY and REPETITION, ``published``: counted as `published` says.

    Shares are 0 where there is nothing to take a share of.
    """
    names = QUALITY + REPETITION
    values = np.zeros((len(documents.offsets) - 1, len(names)))

    def work(first: int, last: int) -> int:
        _measure(documents.data, documents.offsets, first, last, published, classes(), _stop_hashes(), values)
        return last - first

    for done in in_threads(work, documents):
        progress(done)
    return dict(zip(names, values.T, strict=True))


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
def _measure(data, offsets, first, last, published, classes, stops, values):
    longest = 0
    for i in range(first, last):
        longest = max(longest, offsets[i + 1] - offsets[i])
    room = longest // 2 + 2
    words, word_lengths = np.empty(room, np.uint64), np.empty(room, np.int64)
    lines, line_lengths = np.empty(room, np.uint64), np.empty(room, np.int64)
    blocks, block_lengths = np.empty(room, np.uint64), np.empty(room, np.int64)
    grams, spots, places = np.empty(room, np.uint64), np.empty(room, np.int64), np.empty(room, np.int64)
    keys, counts = np.empty(table_size(room), np.uint64), np.empty(table_size(room), np.int64)
    for i in range(first, last):
        row, start, stop = values[i], offsets[i], offsets[i + 1]
        if published:
            count, characters = published_words(data, start, stop, classes, stops, words, word_lengths, row)
            n_lines, n_blocks = published_lines(data, start, stop, classes, lines, line_lengths, blocks, block_lengths)
        else:
            count, characters = _words(data, start, stop, classes, stops, words, word_lengths, row)
            n_lines, n_blocks = _lines(data, start, stop, classes, lines, line_lengths, blocks, block_lengths, row)
        if characters == 0:
            continue
        row[7], row[9] = duplicates(lines, line_lengths, n_lines, keys, characters)
        row[8], row[10] = duplicates(blocks, block_lengths, n_blocks, keys, characters)
        _ngrams(words, word_lengths, count, characters, published, grams, spots, places, keys, counts, row)


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
        kind = classes[code] if code < 0x10000 else np.uint16(ALPHABETIC)
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
            kind = classes[code] if code < 0x10000 else np.uint16(ALPHABETIC)
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
def duplicates(hashes, lengths, count, keys, characters):
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
def _ngrams(words, lengths, count, characters, published, grams, spots, places, keys, counts, row):
    """The n-grams' shares into ``row``. Only where an n-gram occurs twice can a longer one do so: of each n but the
    first, no others (``spots``, m of them) are looked up."""
    m = max(0, count - 1)
    for k in range(m):
        grams[k], spots[k] = words[k], k
    for n in range(2, min(10, count) + 1):
        size = table_size(m)
        keys[:size] = 0
        for j in range(m):
            k = spots[j]
            grams[k] = nonzero(mix(extend(grams[k], words[k + n - 1])))
            at = slot(keys, size, grams[k])
            counts[at] = counts[at] + 1 if keys[at] != 0 else 1
            keys[at], places[j] = grams[k], at
        if n < 5:
            row[9 + n] = _top(lengths, n, spots, places, m, counts, published) / characters
        kept = 0
        for j in range(m):
            if counts[places[j]] > 1:
                spots[kept], places[kept] = spots[j], places[j]
                kept += 1
        if n >= 5:
            row[9 + n] = _repeated(lengths, n, spots, places, kept, counts) / characters
        m = kept - (kept > 0 and spots[kept - 1] + n >= count)


@kernel
def _top(lengths, n, spots, places, m, counts, published):
    """Characters, with single spaces, in the most frequent n-gram that occurs at least twice; the longest of several
    equally frequent. ``published``: the first of several, and once is enough."""
    most, best = 1, 0
    for j in range(m):
        most = max(most, counts[places[j]])
    if most == 1:
        return _length(lengths, 0, n) if published else 0
    for j in range(m):
        if counts[places[j]] == most:
            best = max(best, most * _length(lengths, spots[j], n))
            if published:
                break
    return best


@kernel
def _length(lengths, k, n):
    """Characters of the n words from the k-th on, with single spaces."""
    length = n - 1
    for j in range(n):
        length += lengths[k + j]
    return length


@kernel
def _repeated(lengths, n, spots, places, m, counts):
    """Characters in n-grams that occurred before, none of them counted twice. ``counts`` is used up."""
    inside = free = 0
    for j in range(m):
        k = spots[j]
        if k < free:
            continue
        if counts[places[j]] > 0:
            counts[places[j]] = 0  # seen
            continue
        for word in range(k, k + n):
            inside += lengths[word]
        free = k + n
    return inside
