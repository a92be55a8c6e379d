"""Measure documents for Gopher's rules, in one pass: Rae et al. 2021, arXiv 2112.11446, appendix A1.1.

A word is a run of characters between white space, compared as written; lengths are in characters (code points).
Duplicates are second and later occurrences. The paper leaves the rest open. Here lines and paragraphs without a letter
do not count (rulers, closing braces: any page with code repeats them), and stop words count beside punctuation.
`published` has the other reading.
"""

from functools import cache

import numpy as np

from stages.corpus.filtering.published import published_lines, published_words, stop_bit
from stages.corpus.text.characters import ALPHABETIC, BULLET, SPACE, classes, read_character
from stages.corpus.text.hashing import extend, mix, nonzero, sequence_hash, set_bits, slot, table_size
from stages.corpus.text.kernels import kernel
from stages.corpus.text.words import Texts, in_threads, longest_text

_WORDS = ("words", "mean_word_length", "symbol_ratio")
QUALITY = (*_WORDS, "bullet_lines", "ellipsis_lines", "alphabetic_words", "stop_words")
_LINES = ("duplicate_lines", "duplicate_paragraphs", "duplicate_line_characters", "duplicate_paragraph_characters")
REPETITION = (*_LINES, *(f"top_{n}_gram" for n in (2, 3, 4)), *(f"duplicate_{n}_grams" for n in range(5, 11)))
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")

_ELLIPSIS, _HASH, _DOT, _NEWLINE = 0x2026, 0x23, 0x2E, 0x0A


def gopher_measures(documents: Texts, published: bool = False) -> dict[str, np.ndarray]:
    """Measure QUALITY and REPETITION, float64 (documents,) by name; ``published``: in the reading of `published`.

    Shares of nothing are 0.
    """
    names = QUALITY + REPETITION
    values = np.zeros((len(documents.offsets) - 1, len(names)))

    def work(first: int, last: int) -> None:
        _measure(documents.data, documents.offsets, first, last, published, classes(), _stop_hashes(), values)

    in_threads(work, documents)
    return dict(zip(names, values.T, strict=True))


@cache
def _stop_hashes() -> np.ndarray:
    return np.array([sequence_hash(np.array([ord(c) for c in word], np.uint64)) for word in STOP_WORDS], np.uint64)


@kernel
def _measure(
    data: np.ndarray, offsets: np.ndarray, first: int, last: int, published: bool, classes: np.ndarray,
    stops: np.ndarray, values: np.ndarray,
) -> None:  # fmt: skip
    room = longest_text(offsets, first, last) // 2 + 2
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
def _words(
    data: np.ndarray, start: int, stop: int, classes: np.ndarray, stops: np.ndarray, words: np.ndarray,
    lengths: np.ndarray, row: np.ndarray,
) -> tuple[int, int]:  # fmt: skip
    """Write hashes and lengths of the words, and the values of the word rules to ``row``; return words, characters."""
    count = characters = total = alphabetic = hashes = ellipses = dots = 0
    state, letters, length, has_letter, seen_stops = np.uint64(0), np.uint64(0), 0, False, 0
    at = start
    while at < stop:
        code, width, kind = read_character(data, at, classes)
        at += width
        characters += 1
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
            seen_stops |= stop_bit(letters, stops)
            state, letters, length, has_letter = np.uint64(0), np.uint64(0), 0, False
    row[0] = count
    if count > 0:
        row[1] = total / count
        row[2] = max(hashes, ellipses) / count
        row[5] = alphabetic / count
    row[6] += set_bits(seen_stops)
    return count, characters


@kernel
def _lines(
    data: np.ndarray, start: int, stop: int, classes: np.ndarray, lines: np.ndarray, line_lengths: np.ndarray,
    blocks: np.ndarray, block_lengths: np.ndarray, row: np.ndarray,
) -> tuple[int, int]:  # fmt: skip
    """Write hashes and lengths of lines and paragraphs with a letter; return the numbers of both.

    A paragraph is a run of non-blank lines. The shares of the line rules, of all non-blank lines, go to ``row``.
    """
    n_lines = n_blocks = bullets = ellipses = written = 0
    block, block_length, block_letter = np.uint64(0), 0, False
    at = start
    while at < stop:
        state, length, dots, bullet, letter = np.uint64(0), 0, 0, False, False
        spaces = 0
        while at < stop:
            code, width, kind = read_character(data, at, classes)
            at += width
            if code == _NEWLINE:
                break
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
def duplicates(
    hashes: np.ndarray, lengths: np.ndarray, count: int, keys: np.ndarray, characters: int
) -> tuple[float, float]:
    """Return the share of elements that occurred before, and of the document's characters in them."""
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
def _ngrams(
    words: np.ndarray, lengths: np.ndarray, count: int, characters: int, published: bool, grams: np.ndarray,
    spots: np.ndarray, places: np.ndarray, keys: np.ndarray, counts: np.ndarray, row: np.ndarray,
) -> None:  # fmt: skip
    """Write the shares of the n-grams to ``row``.

    A longer n-gram can occur twice only where a shorter one does: from the second n on, only those places (``spots``,
    m of them) are looked up.
    """
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
def _top(
    lengths: np.ndarray, n: int, spots: np.ndarray, places: np.ndarray, m: int, counts: np.ndarray, published: bool
) -> int:
    """Count the characters, with single spaces, in the most frequent n-gram that occurs at least twice.

    Of several equally frequent the longest counts. ``published``: the first counts, and once is enough.
    """
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
def _length(lengths: np.ndarray, k: int, n: int) -> int:
    """Count the characters of n words from the k-th on, with single spaces."""
    length = n - 1
    for j in range(n):
        length += lengths[k + j]
    return length


@kernel
def _repeated(lengths: np.ndarray, n: int, spots: np.ndarray, places: np.ndarray, m: int, counts: np.ndarray) -> int:
    """Count the characters in n-grams that occurred before, each once; ``counts`` is overwritten."""
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
