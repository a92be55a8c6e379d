"""The rules for web pages: C4's, which also take lines out, and FineWeb's.

Raffel et al. 2020, arXiv 1910.10683, section 2.2, with the limits on words and the phrases of its published code;
Penedo et al. 2024, arXiv 2406.17557, section 3.6. Words are runs of characters between white space.
"""

from functools import cache

import numpy as np

from stages.contract.params import C4
from stages.corpus.characters import BREAK, FINAL, LETTER, LOWER, QUOTE, SPACE, SYMBOL, UPPER, classes
from stages.corpus.hashing import extend, mix, nonzero, table_size
from stages.corpus.kernels import kernel
from stages.corpus.measures import duplicates
from stages.corpus.words import Texts, decode, in_threads

C4_MEASURES = ("c4_phrases", "c4_sentences")
C4_LINES = ("c4_min_line_words", "c4_max_word_length", "c4_drop_lines_with", "c4_final_punctuation")
FINEWEB_MEASURES = ("line_endings", "short_lines", "repeated_line_characters", "newlines")

# A full stop behind one of these ends no sentence; nor does one behind a single letter.
_TITLES = "Mr Mrs Ms Messrs Dr Prof Ph.D St Jr Sr Rev Gen Gov Sen Rep Adm Inc Co co Corp Ltd Bros vs e.g E.g i.e I.e"
_TIMES = "a.m p.m Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec"
ABBREVIATIONS = (*_TITLES.split(), *_TIMES.split())
_NEWLINE, _DOT, _OPEN, _CLOSE, _RETURN = 0x0A, 0x2E, 0x5B, 0x5D, 0x0D
_CITATIONS = ("[edit]", "[citation needed]")


def clean(documents: Texts, params: C4) -> tuple[Texts, dict[str, np.ndarray], np.ndarray]:
    """The documents without the lines that C4 takes out and without citation marks, float64 (documents,) each:

    c4_phrases: lines left that hold one of ``params.drop_documents_with``; c4_sentences: sentences left, counted until
    there are ``params.min_sentences``;

    and int64 (documents, 1 + C4_LINES, 3): how many lines that are not blank there were, and of these how many each
    rule took out, by the first that applies, and where the first of them begins and ends.
    """
    room, starts = np.empty(max(1, len(documents.data)), np.uint8), documents.offsets
    lengths = np.zeros(len(starts) - 1, np.int64)
    values = np.zeros((len(lengths), len(C4_MEASURES)))
    taken = np.zeros((len(lengths), 1 + len(C4_LINES), 3), np.int64)
    limits = (params.min_line_words, params.max_word_length, params.final_punctuation, least_sentences(params))
    phrases, citations = _phrases([*params.drop_lines_with, *params.drop_documents_with]), _phrases(_CITATIONS)

    def work(first: int, last: int) -> None:
        _clean(documents.data, starts, first, last, classes(), _abbreviations(), *limits, phrases,
               len(params.drop_lines_with), citations, room, lengths, values, taken)  # fmt: skip

    for _ in in_threads(work, documents):
        pass
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    data = np.empty(int(offsets[-1]), np.uint8)
    _join(room, starts, lengths, offsets, data)
    return Texts(data, offsets), dict(zip(C4_MEASURES, values.T, strict=True)), taken


def least_sentences(params: C4) -> int:
    """At least one: a document of which no line is left is none."""
    return max(1, params.min_sentences)


def web_measures(documents: Texts, short_line: int) -> dict[str, np.ndarray]:
    """float64 (documents,) for each of FINEWEB_MEASURES; lines are those that are not blank.

    line_endings: share of lines that end with a mark that ends a sentence; short_lines: of at most ``short_line``
    characters; repeated_line_characters: characters in second and later occurrences, of all but newlines;
    newlines: for each word.
    """
    values = np.zeros((len(documents.offsets) - 1, len(FINEWEB_MEASURES)))

    def work(first: int, last: int) -> None:
        _web(documents.data, documents.offsets, first, last, classes(), short_line, values)

    for _ in in_threads(work, documents):
        pass
    return dict(zip(FINEWEB_MEASURES, values.T, strict=True))


def _phrases(phrases: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower-case phrases back to back (uint8), where each begins (int64), and uint64 (3, 256): bit p of [k, byte] says
    whether phrase p may have this byte, of either case, at place k."""
    encoded = [phrase.lower().encode() for phrase in phrases]
    may = np.zeros((3, 256), np.uint64)
    for p, phrase in enumerate(encoded):
        for k in range(3):
            of_either_case = [*phrase[k : k + 1], *phrase[k : k + 1].upper()] or slice(None)
            may[k, of_either_case] |= np.uint64(1 << p)
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)]), may


@cache
def _abbreviations() -> np.ndarray:
    return np.array([_hash(np.frombuffer(word.encode(), np.uint8)) for word in ABBREVIATIONS], np.uint64)


@kernel
def _hash(data):
    state = np.uint64(0)
    for byte in data:
        state = extend(state, np.uint64(byte))
    return state


@kernel
def _clean(data, offsets, first, last, classes, abbreviations, min_words, max_length, punctuated, min_sentences,
           phrases, of_lines, citations, out, lengths, values, taken):  # fmt: skip
    for i in range(first, last):
        at, written = offsets[i], offsets[i]
        while at < offsets[i + 1]:
            a, b, at, words, longest = _line(data, at, offsets[i + 1], classes)
            taken[i, 0, 0] += words > 0
            if words < min_words or longest > max_length:
                if words > 0:
                    _take(taken[i, 1 if words < min_words else 2], a, b)
                continue
            begin = written + (written > offsets[i])
            end = _copy(data, a, b, citations, out, begin)
            found = _found(out, begin, end, phrases)
            phrase = (found & ((np.uint64(1) << np.uint64(of_lines)) - np.uint64(1))) != 0
            if phrase or (punctuated and not _ends(out, begin, end)):
                _take(taken[i, 3 if phrase else 4], a, b)
                continue
            values[i, 0] += found != 0
            if values[i, 1] < min_sentences:
                values[i, 1] += _sentences(out, begin, end, classes, abbreviations)
            if begin > written:
                out[written] = _NEWLINE
            written = end
        while written > offsets[i] and out[written - 1] <= 0x20:  # what stood before a citation at the very end
            written -= 1
        lengths[i] = written - offsets[i]


@kernel
def _take(taken, a, b):
    if taken[0] == 0:
        taken[1], taken[2] = a, b
    taken[0] += 1


@kernel
def _line(data, start, stop, classes):
    """The line that begins at ``start`` as data[a:b] without white space at its ends, where the next one begins, its
    words and the characters of the longest."""
    a, b, at, words, longest, length = stop, start, start, 0, 0, 0
    while at < stop:
        code, width = decode(data, at)
        kind = classes[code] if code < 0x10000 else np.uint16(LETTER)
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
def _copy(data, a, b, citations, out, to):
    """Copies data[a:b] without [1], [], [edit] and [citation needed] to out[to:]; where it ends there."""
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
def _found(data, a, b, table):
    """Bit p: the line data[a:b] holds phrase p, in whatever case."""
    phrases, starts, may = table
    found = np.uint64(0)
    for at in range(a, b):
        left = may[0, data[at]]
        if left == 0:
            continue
        for k in range(1, min(3, b - at)):
            left &= may[k, data[at + k]]
        p = 0
        while left != 0:
            if left & np.uint64(1) and _match(data, at, b, phrases[starts[p] : starts[p + 1]]):
                found |= np.uint64(1) << np.uint64(p)
            left >>= np.uint64(1)
            p += 1
    return found


@kernel
def _match(data, a, b, phrase):
    """Whether data[a:b] begins with ``phrase``, in whatever case."""
    if phrase.shape[0] > b - a:
        return False
    for k in range(phrase.shape[0]):
        byte = data[a + k]
        if (byte | np.uint8(0x20) if 0x41 <= byte <= 0x5A else byte) != phrase[k]:
            return False
    return True


@kernel
def _ends(data, a, b):
    """Whether a line ends with . ? ! or a quotation mark, and not with an ellipsis."""
    if b == a:
        return False
    last = data[b - 1]
    if last == _DOT:
        return not (b - a >= 3 and data[b - 2] == _DOT and data[b - 3] == _DOT)
    return last == 0x3F or last == 0x21 or last == 0x22 or last == 0x27


@kernel
def _sentences(data, a, b, classes, abbreviations):
    """Sentences of a line: one, and one more at each word behind a mark that ends a sentence."""
    count, ended = 1, False
    while a < b:
        head, tail, z, marked, content = b, a, a, False, False
        while z < b:
            code, width = decode(data, z)
            kind = classes[code] if code < 0x10000 else np.uint16(LETTER)
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
def _within(data, a, z, head, tail, classes, abbreviations, count, ended):
    """``count`` and ``ended`` behind the word data[a:z], which holds a mark; letters are in data[head:tail]."""
    before = earlier = np.uint16(0)
    while a < z:
        code, width = decode(data, a)
        kind = classes[code] if code < 0x10000 else np.uint16(LETTER)
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
def _full_stop(data, at, z, head, tail, before, earlier, classes, abbreviations):
    """Whether the dot at data[at], in the word that ends at ``z``, behind a character of the kind ``before`` and one
    ``earlier``, ends a sentence: no ellipsis, no abbreviation, no initial, and not within a word but for lower.Upper.
    """
    if (at > 0 and before != 0 and data[at - 1] == _DOT) or (at + 1 < z and data[at + 1] == _DOT):
        return False
    if at < tail:
        code, _ = decode(data, at + 1)
        after = classes[code] if code < 0x10000 else np.uint16(LETTER)
        return (before & LOWER) != 0 and (after & UPPER) != 0
    if before & UPPER:
        return (earlier & UPPER) != 0
    if before & LOWER:
        if at == head + 1:
            return False
        word = _hash(data[head:at])
        for k in range(abbreviations.shape[0]):
            if word == abbreviations[k]:
                return False
    return True


@kernel
def _web(data, offsets, first, last, classes, short_line, values):
    longest = 0
    for i in range(first, last):
        longest = max(longest, offsets[i + 1] - offsets[i])
    hashes, lengths = np.empty(longest // 2 + 2, np.uint64), np.empty(longest // 2 + 2, np.int64)
    keys = np.empty(table_size(longest // 2 + 2), np.uint64)
    for i in range(first, last):
        at, stop, row = offsets[i], offsets[i + 1], values[i]
        lines = endings = short = characters = newlines = words = 0
        while at < stop:
            state, length, blank, inside, kind = np.uint64(0), 0, True, False, np.uint16(0)
            while at < stop:
                code, width = decode(data, at)
                at += width
                if code == _NEWLINE:
                    newlines += 1
                    break
                state = extend(state, np.uint64(code))
                length += 1
                kind = classes[code] if code < 0x10000 else np.uint16(LETTER)
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


@kernel
def _join(data, starts, lengths, offsets, out):
    for i in range(lengths.shape[0]):
        out[offsets[i] : offsets[i + 1]] = data[starts[i] : starts[i] + lengths[i]]
