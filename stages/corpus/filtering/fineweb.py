"""Measure web pages for FineWeb's rules: Penedo et al. 2024, arXiv 2406.17557, section 3.6.

Words are runs of characters between white space.
"""

import numpy as np

from stages.corpus.filtering.gopher import duplicates
from stages.corpus.text.characters import FINAL, SPACE, classes, read_character
from stages.corpus.text.hashing import extend, mix, nonzero, table_size
from stages.corpus.text.kernels import kernel
from stages.corpus.text.words import Texts, in_threads, longest_text

FINEWEB_MEASURES = ("line_endings", "short_lines", "repeated_line_characters", "newlines")
_NEWLINE = 0x0A


def web_measures(documents: Texts, short_line: int) -> dict[str, np.ndarray]:
    """Measure FINEWEB_MEASURES, float64 (documents,) by name; blank lines are no lines.

    line_endings: share of lines with a sentence's final mark at the end. short_lines: share of lines of at most
    ``short_line`` characters. repeated_line_characters: share of characters, newlines aside, in second and later
    occurrences of lines. newlines: newlines per word.
    """
    values = np.zeros((len(documents.offsets) - 1, len(FINEWEB_MEASURES)))

    def work(first: int, last: int) -> None:
        _web(documents.data, documents.offsets, first, last, classes(), short_line, values)

    in_threads(work, documents)
    return dict(zip(FINEWEB_MEASURES, values.T, strict=True))


@kernel
def _web(
    data: np.ndarray, offsets: np.ndarray, first: int, last: int, classes: np.ndarray, short_line: int,
    values: np.ndarray,
) -> None:  # fmt: skip
    room = longest_text(offsets, first, last) // 2 + 2
    hashes, lengths, keys = np.empty(room, np.uint64), np.empty(room, np.int64), np.empty(table_size(room), np.uint64)
    for i in range(first, last):
        at, stop, row = offsets[i], offsets[i + 1], values[i]
        lines = endings = short = characters = newlines = words = 0
        while at < stop:
            state, length, blank, inside, kind = np.uint64(0), 0, True, False, np.uint16(0)
            while at < stop:
                code, width, of_character = read_character(data, at, classes)
                at += width
                if code == _NEWLINE:
                    newlines += 1
                    break
                kind = of_character
                state = extend(state, np.uint64(code))
                length += 1
                space = (kind & SPACE) != 0
                words += not space and not inside
                inside = not space
                blank &= space
            characters += length
            if not blank:
                hashes[lines], lengths[lines] = nonzero(mix(state)), length
                lines += 1
                endings += (kind & FINAL) != 0
                short += length <= short_line
        if lines > 0:
            row[0], row[1], row[3] = endings / lines, short / lines, newlines / words
            _, row[2] = duplicates(hashes, lengths, lines, keys, characters)
