"""Classes of characters for the filter rules, as bits in a table of the Basic Multilingual Plane."""

import unicodedata
from functools import cache

import numpy as np

from stages.corpus.text.kernels import inlined
from stages.corpus.text.words import decode

SPACE, ALPHABETIC, BULLET, LETTER, SYMBOL, BREAK, FINAL, UPPER, LOWER, QUOTE = (1 << bit for bit in range(10))

# Marks that end a sentence, of the property Sentence_Terminal (UAX 29), without the ambiguous ones.
_FINAL = "!.?։؝؟۔܀܁܂߹࠷࠹࠽࠾।॥၊။።፧፨᙮᜵᜶។៕᠃᠉᥄᥅᪨᪩᪪᪫᭚᭛᭞᭟᭽᭾᰻᰼᱾᱿‼‽⁇⁈⁉⸮⸼⹓⹔。꓿꘎꘏꛳꛷꡶꡷꣎꣏꤯꧈꧉꩝꩞꩟꫰꫱꯫﹒﹖﹗！．？｡"  # noqa: RUF001


@cache
def classes() -> np.ndarray:
    """Return the classes of each code point below 65536, as bits of a uint16.

    SPACE as str.isspace; ALPHABETIC letters and marks; LETTER as str.isalpha; BULLET begins a list item; SYMBOL
    punctuation of any script, ASCII symbols and control characters; BREAK ends a line for str.splitlines; FINAL ends a
    sentence; UPPER, LOWER by case; QUOTE any punctuation.
    """
    table = np.zeros(1 << 16, np.uint16)
    for code in range(1 << 16):
        char, category = chr(code), unicodedata.category(chr(code))
        symbol = category[0] == "P" or category == "Cc" or (code < 128 and category[0] == "S")
        table[code] = (
            SPACE * char.isspace()
            | ALPHABETIC * (category[0] in "LM")
            | LETTER * char.isalpha()
            | SYMBOL * symbol
            | BREAK * (char.splitlines() == [""])
            | UPPER * (category == "Lu")
            | LOWER * (category == "Ll")
            | QUOTE * (category[0] == "P")
        )
    for bit, chars in ((BULLET, "-*•‣◦▪·"), (FINAL | SYMBOL, _FINAL)):
        for char in chars:
            table[ord(char)] |= bit
    table.flags.writeable = False
    return table


@inlined
def read_character(data: np.ndarray, at: int, classes: np.ndarray) -> tuple[np.uint32, int, np.uint16]:
    """Return the code point at byte ``at`` of valid UTF-8, its width in bytes, and its classes.

    Characters beyond the Basic Multilingual Plane count as letters.
    """
    code, width = decode(data, at)
    return code, width, classes[code] if code < 0x10000 else np.uint16(ALPHABETIC | LETTER)
