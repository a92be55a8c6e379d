"""Count words and lines as the code behind FineWeb does (datatrove 0.10), where `gopher` reads the paper differently.

A word of symbols alone counts neither for lengths nor for the minimum. Stop words are compared as written. Bullets are
- and •. Every line counts, also an empty one. Lines (between newlines) and paragraphs (between empty lines) are
compared as written, whatever is in them. Penedo et al. 2024, arXiv 2406.17557.
"""

import numpy as np

from stages.corpus.text.characters import BREAK, LETTER, SPACE, SYMBOL, read_character
from stages.corpus.text.hashing import extend, mix, nonzero, set_bits
from stages.corpus.text.kernels import inlined, kernel

_ELLIPSIS, _HASH, _DOT, _NEWLINE, _RETURN, _HYPHEN, _BULLET = 0x2026, 0x23, 0x2E, 0x0A, 0x0D, 0x2D, 0x2022


@inlined
def stop_bit(word: np.uint64, stops: np.ndarray) -> int:
    """Return the bit of the stop word with the hash ``word``, or 0."""
    bit = 0
    for k in range(stops.shape[0]):
        if word == stops[k]:
            bit = 1 << k
    return bit


@kernel
def published_words(
    data: np.ndarray, start: int, stop: int, classes: np.ndarray, stops: np.ndarray, words: np.ndarray,
    lengths: np.ndarray, row: np.ndarray,
) -> tuple[int, int]:  # fmt: skip
    """Write hashes and lengths of all words; return the numbers of words and of characters.

    The values of the rules on words, bullets and ellipses go to ``row``.
    """
    count = characters = total = wordy = alphabetic = hashes = ellipses = seen_stops = 0
    state, length, letter, symbols = np.uint64(0), 0, False, True
    written = bullets = trailing = dots = last_dots = 0
    bullet, blank, before = False, True, np.uint32(0)
    at = start
    while at < stop:
        code, width, kind = read_character(data, at, classes)
        at += width
        characters += 1
        space = (kind & SPACE) != 0
        if not space:
            state = extend(state, np.uint64(code))
            length += 1
            letter |= (kind & LETTER) != 0
            symbols &= (kind & SYMBOL) != 0
            hashes += code == _HASH
            dots = dots + 1 if code == _DOT else 0
            ellipses += (dots > 0 and dots % 3 == 0) or code == _ELLIPSIS
            last_dots = 3 if code == _ELLIPSIS else dots
            bullet |= blank and code in (_HYPHEN, _BULLET)
            blank = False
        if length > 0 and (space or at >= stop):
            words[count], lengths[count] = mix(state), length
            count += 1
            alphabetic += letter
            if not symbols:
                wordy += 1
                total += length
            seen_stops |= stop_bit(state, stops)
            state, length, letter, symbols, dots = np.uint64(0), 0, False, True, 0
        if kind & BREAK or at >= stop:  # the end of a line; \r\n is one
            if not (code == _NEWLINE and before == _RETURN):
                written += 1
                bullets += bullet
                trailing += last_dots >= 3
            bullet, blank, last_dots = False, True, 0
        before = code
    row[0] = wordy
    if wordy > 0:
        row[1] = total / wordy
    if count > 0:
        row[2] = max(hashes, ellipses) / count
        row[3], row[4] = bullets / written, trailing / written
        row[5] = alphabetic / count
    row[6] += set_bits(seen_stops)
    return count, characters


@kernel
def published_lines(
    data: np.ndarray, start: int, stop: int, classes: np.ndarray, lines: np.ndarray, line_lengths: np.ndarray,
    blocks: np.ndarray, block_lengths: np.ndarray,
) -> tuple[int, int]:  # fmt: skip
    """Write hashes and lengths of the lines and paragraphs; return the numbers of lines and paragraphs."""
    first, last = _stripped(data, start, stop, classes)
    n_lines = n_blocks = newlines = 0
    line, length, block, block_length = np.uint64(0), 0, np.uint64(0), 0
    for at in range(start, stop):
        byte = data[at]
        if byte == _NEWLINE:
            if at == start or data[at - 1] != _NEWLINE:  # an empty first line is a line
                lines[n_lines], line_lengths[n_lines] = nonzero(mix(line)), length
                n_lines += 1
                line, length = np.uint64(0), 0
            newlines += 1
            continue
        character = (byte & 0xC0) != 0x80
        line = extend(line, np.uint64(byte))
        length += character
        if first <= at < last:
            if newlines > 1 and block_length > 0:
                blocks[n_blocks], block_lengths[n_blocks] = nonzero(mix(block)), block_length
                n_blocks += 1
                block, block_length = np.uint64(0), 0
            elif newlines == 1 and block_length > 0:
                block, block_length = extend(block, np.uint64(_NEWLINE)), block_length + 1
            block, block_length = extend(block, np.uint64(byte)), block_length + character
        newlines = 0
    lines[n_lines], line_lengths[n_lines] = nonzero(mix(line)), length
    blocks[n_blocks], block_lengths[n_blocks] = nonzero(mix(block)), block_length
    return n_lines + 1, n_blocks + 1


@kernel
def _stripped(data: np.ndarray, start: int, stop: int, classes: np.ndarray) -> tuple[int, int]:
    """Return first and last: data[first:last] is data[start:stop] without white space at its ends."""
    first, last = start, stop
    while first < stop:
        _, width, kind = read_character(data, first, classes)
        if not kind & SPACE:
            break
        first += width
    while last > first:
        at = last - 1
        while data[at] & 0xC0 == 0x80:
            at -= 1
        _, _, kind = read_character(data, at, classes)
        if not kind & SPACE:
            break
        last = at
    return first, last
