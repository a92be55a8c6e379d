"""Apply C4's rules for web pages, which also drop lines: Raffel et al. 2020, arXiv 1910.10683, section 2.2.

The limits on words and the phrases are those of its published code. Words are runs of characters between white space.
"""

from collections.abc import Sequence

import numpy as np

from stages.contract.params import C4
from stages.corpus.text.arrays import strings
from stages.corpus.text.characters import BREAK, SPACE, classes, read_character
from stages.corpus.text.kernels import kernel
from stages.corpus.text.sentences import abbreviations, count_sentences, ends_with_any_mark, ends_with_mark
from stages.corpus.text.words import Texts, column, in_threads, texts
from stages.corpus.text.writing import EVERYDAY, Writing, spaced

C4_MEASURES = ("c4_phrases", "c4_sentences")
C4_LINES = ("c4_min_line_words", "c4_max_word_length", "c4_drop_lines_with", "c4_final_punctuation")

_NEWLINE, _OPEN, _CLOSE, _RETURN = 0x0A, 0x5B, 0x5D, 0x0D
_CITATIONS = ("[edit]", "[citation needed]")
_Phrases = tuple[np.ndarray, np.ndarray, np.ndarray]  # see `_phrases`


def clean(documents: Texts, params: C4, how: Writing = EVERYDAY) -> tuple[Texts, dict[str, np.ndarray], np.ndarray]:
    """Drop C4's lines and citation marks from documents of one way of writing.

    Returns:
        The documents; C4_MEASURES of them, float64 (documents,) each; and the lines that were dropped, int64
        (documents, 1 + C4_LINES, 3).

        c4_phrases: remaining lines with one of ``params.drop_documents_with``. c4_sentences: remaining sentences,
        counted up to ``params.min_sentences``. Of the third: the number of lines that are not blank, then for each rule
        the number of lines it dropped (the first rule that applies counts), and start and end of the first of them.
    """
    room, starts = np.empty(max(1, len(documents.data)), np.uint8), documents.offsets
    lengths = np.zeros(len(starts) - 1, np.int64)
    values = np.zeros((len(lengths), len(C4_MEASURES)))
    taken = np.zeros((len(lengths), 1 + len(C4_LINES), 3), np.int64)
    punctuated = _punctuated(params, how)
    limits = (params.min_line_words, params.max_word_length, punctuated, least_sentences(params))
    wanted = [*params.drop_lines_with, *params.drop_documents_with]
    if not how.spaces:
        wanted = column(spaced(texts(strings(wanted)))).to_pylist()
    phrases, citations = _phrases(wanted), _phrases(_CITATIONS)

    def work(first: int, last: int) -> None:
        _clean(documents.data, starts, first, last, classes(), abbreviations(), *limits, phrases,
               len(params.drop_lines_with), citations, room, lengths, values, taken)  # fmt: skip

    in_threads(work, documents)
    offsets = np.append(0, np.cumsum(lengths))
    data = np.empty(int(offsets[-1]), np.uint8)
    _join(room, starts, lengths, offsets, data)
    return Texts(data, offsets), dict(zip(C4_MEASURES, values.T, strict=True)), taken


def _punctuated(params: C4, how: Writing) -> int:
    """Return which marks must end a line: 0 none, 1 those of English, 2 those of any script."""
    return int(params.final_punctuation) and (1 if how.english else 2 if how.marks else 0)


def least_sentences(params: C4) -> int:
    """Return the least number of sentences, at least one: a document without lines is dropped."""
    return max(1, params.min_sentences)


def _phrases(phrases: Sequence[str]) -> _Phrases:
    """Prepare phrases for `_phrases_in`.

    Returns:
        The phrases in lower case back to back (uint8); where each begins (int64); and uint64 (3, 256): bit p of
        [k, byte] is set if phrase p may have this byte, in either case, at place k.
    """
    encoded = [phrase.lower().encode() for phrase in phrases]
    may = np.zeros((3, 256), np.uint64)
    for p, phrase in enumerate(encoded):
        for k in range(3):
            of_either_case = [*phrase[k : k + 1], *phrase[k : k + 1].upper()] or slice(None)
            may[k, of_either_case] |= np.uint64(1 << p)
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)]), may


@kernel
def _clean(
    data: np.ndarray, offsets: np.ndarray, first: int, last: int, classes: np.ndarray, abbreviations: np.ndarray,
    min_words: int, max_length: int, punctuated: int, min_sentences: int, phrases: _Phrases, of_lines: int,
    citations: _Phrases, out: np.ndarray, lengths: np.ndarray, values: np.ndarray, taken: np.ndarray,
) -> None:  # fmt: skip
    for i in range(first, last):
        at, written = offsets[i], offsets[i]
        while at < offsets[i + 1]:
            a, b, at, words, longest = _line(data, at, offsets[i + 1], classes)
            taken[i, 0, 0] += words > 0
            if words < min_words or longest > max_length:
                if words > 0:
                    _count_line(taken[i, 1 if words < min_words else 2], a, b)
                continue
            begin = written + (written > offsets[i])
            end = _copy(data, a, b, citations, out, begin)
            held = _phrases_in(out, begin, end, phrases)
            phrase = (held & ((np.uint64(1) << np.uint64(of_lines)) - np.uint64(1))) != 0
            ends = (
                punctuated == 0
                or ends_with_mark(out, begin, end)
                or (punctuated == 2 and ends_with_any_mark(out, begin, end, classes))
            )
            if phrase or not ends:
                _count_line(taken[i, 3 if phrase else 4], a, b)
                continue
            values[i, 0] += held != 0
            if values[i, 1] < min_sentences:
                values[i, 1] += count_sentences(out, begin, end, classes, abbreviations)
            if begin > written:
                out[written] = _NEWLINE
            written = end
        while written > offsets[i] and out[written - 1] <= 0x20:  # white space before a citation at the very end
            written -= 1
        lengths[i] = written - offsets[i]


@kernel
def _count_line(taken: np.ndarray, a: int, b: int) -> None:
    if taken[0] == 0:
        taken[1], taken[2] = a, b
    taken[0] += 1


@kernel
def _line(data: np.ndarray, start: int, stop: int, classes: np.ndarray) -> tuple[int, int, int, int, int]:
    """Return the line at ``start``.

    That is data[a:b] without white space at its ends, where the next line begins, the number of words, and the
    characters of the longest word.
    """
    a, b, at, words, longest, length = stop, start, start, 0, 0, 0
    while at < stop:
        code, width, kind = read_character(data, at, classes)
        at += width
        if kind & SPACE:
            length = 0
            if kind & BREAK:
                if code == _RETURN and at < stop and data[at] == _NEWLINE:
                    at += 1
                break
        else:
            a, b = min(a, at - width), at
            words += length == 0
            length += 1
            longest = max(longest, length)
    return min(a, b), b, at, words, longest


@kernel
def _copy(data: np.ndarray, a: int, b: int, citations: _Phrases, out: np.ndarray, to: int) -> int:
    """Copy data[a:b] without [1], [], [edit] and [citation needed] to out[to:]; return the end of the copy."""
    while a < b:
        if data[a] == _OPEN:
            k = a + 1
            while k < b and 0x30 <= data[k] <= 0x39:
                k += 1
            if k < b and data[k] == _CLOSE:
                a = k + 1
                continue
            length = 0
            for p in range(2):
                if _match(data, a, b, citations[0][citations[1][p] : citations[1][p + 1]]):
                    length = citations[1][p + 1] - citations[1][p]
            if length > 0:
                a += length
                continue
        out[to] = data[a]
        to, a = to + 1, a + 1
    return to


@kernel
def _phrases_in(data: np.ndarray, a: int, b: int, table: _Phrases) -> np.uint64:
    """Return the phrases in the line data[a:b] as bits, whatever their case."""
    phrases, starts, may = table
    held = np.uint64(0)
    for at in range(a, b):
        left = may[0, data[at]]
        if left == 0:
            continue
        for k in range(1, min(3, b - at)):
            left &= may[k, data[at + k]]
        p = 0
        while left != 0:
            if left & np.uint64(1) and _match(data, at, b, phrases[starts[p] : starts[p + 1]]):
                held |= np.uint64(1) << np.uint64(p)
            left >>= np.uint64(1)
            p += 1
    return held


@kernel
def _match(data: np.ndarray, a: int, b: int, phrase: np.ndarray) -> bool:
    """Return whether data[a:b] begins with ``phrase``, whatever its case."""
    if phrase.shape[0] > b - a:
        return False
    for k in range(phrase.shape[0]):
        byte = data[a + k]
        if (byte | np.uint8(0x20) if 0x41 <= byte <= 0x5A else byte) != phrase[k]:
            return False
    return True


@kernel
def _join(data: np.ndarray, starts: np.ndarray, lengths: np.ndarray, offsets: np.ndarray, out: np.ndarray) -> None:
    for i in range(lengths.shape[0]):
        out[offsets[i] : offsets[i + 1]] = data[starts[i] : starts[i] + lengths[i]]
