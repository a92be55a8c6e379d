"""What kinds of characters the rules tell apart, as bits of a table of the Basic Multilingual Plane."""

import unicodedata
from functools import cache

import numpy as np

SPACE, ALPHABETIC, BULLET, LETTER, SYMBOL, BREAK, FINAL, UPPER, LOWER, QUOTE = (1 << bit for bit in range(10))

# Marks that end a sentence, of the property Sentence_Terminal (UAX 29), without the ambiguous ones.
_FINAL = "!.?։؝؟۔܀܁܂߹࠷࠹࠽࠾।॥၊။።፧፨᙮᜵᜶។៕᠃᠉᥄᥅᪨᪩᪪᪫᭚᭛᭞᭟᭽᭾᰻᰼᱾᱿‼‽⁇⁈⁉⸮⸼⹓⹔。꓿꘎꘏꛳꛷꡶꡷꣎꣏꤯꧈꧉꩝꩞꩟꫰꫱꯫﹒﹖﹗！．？｡"  # noqa: RUF001


@cache
def classes() -> np.ndarray:
    """uint16 (65536,). Characters beyond the plane are ALPHABETIC and a LETTER.

    SPACE as str.isspace; ALPHABETIC letters and marks; LETTER as str.isalpha; BULLET as the first of a list's line;
    SYMBOL punctuation of any script, ASCII symbols and control characters; BREAK ends a line for str.splitlines;
    FINAL ends a sentence; UPPER, LOWER by case; QUOTE: punctuation of any kind.
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
