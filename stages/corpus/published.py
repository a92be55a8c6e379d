"""Words and lines as the code behind FineWeb counts them (datatrove 0.10), where `measures` has ideas of its own.

A word of nothing but symbols counts for no length and no minimum; stop words are compared as written; bullets are -
and •, and every line counts, empty ones too; lines (between newlines) and paragraphs (between empty lines) are
compared as written, whatever is in them. Penedo et al. 2024, arXiv 2406.17557.
"""

import numpy as np

from stages.corpus.characters import BREAK, LETTER, SPACE, SYMBOL
from stages.corpus.hashing import extend, mix, nonzero
from stages.corpus.kernels import kernel
from stages.corpus.words import decode

_ELLIPSIS, _HASH, _DOT, _NEWLINE, _RETURN, _HYPHEN, _BULLET = 0x2026, 0x23, 0x2E, 0x0A, 0x0D, 0x2D, 0x2022


@kernel
def published_words(data, start, stop, classes, stops, words, lengths, row):
    """Hashes and lengths of all words; the values of the rules on words, bullets and ellipses into ``row``; number of
    words and of characters."""
    count = characters = total = wordy = alphabetic = hashes = ellipses = found = 0
    state, length, letter, symbols = np.uint64(0), 0, False, True
    written = bullets = trailing = dots = last_dots = 0
    bullet, blank, before = False, True, np.uint32(0)
    at = start
    while at < stop:
        code, width = decode(data, at)
        at += width
        characters += 1
        kind = classes[code] if code < 0x10000 else np.uint16(LETTER)
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
            for k in range(stops.shape[0]):
                if state == stops[k]:
                    found |= 1 << k
            state, length, letter, symbols, dots = np.uint64(0), 0, False, True, 0
        broken = (kind & BREAK) != 0
        if broken or at >= stop:  # a line ends, of which \r\n are one end
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
    while found > 0:
        row[6] += found & 1
        found >>= 1
    return count, characters


@kernel
def published_lines(data, start, stop, classes, lines, line_lengths, blocks, block_lengths):
    """Hashes and lengths of the lines and paragraphs; how many of each."""
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
def _stripped(data, start, stop, classes):
    """data[first:last] is data[start:stop] without white space at its ends."""
    first, last = start, stop
    while first < stop:
        code, width = decode(data, first)
        if code >= 0x10000 or not classes[code] & SPACE:
            break
        first += width
    while last > first:
        at = last - 1
        while data[at] & 0xC0 == 0x80:
            at -= 1
        code, _ = decode(data, at)
        if code >= 0x10000 or not classes[code] & SPACE:
            break
        last = at
    return first, last
