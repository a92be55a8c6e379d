"""Turn a JSON array of objects into JSON lines while it is read, so that it costs no more memory than lines do."""

import re
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np

from stages.corpus.reading.streams import Chunks

START = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*\{")
STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["{}\[\]]', re.DOTALL)  # a lone quote: cut off in a string


def as_lines(stream: Chunks) -> Chunks:
    """Yield the chunks of ``stream`` with each object of an array on a line of its own; other files as they are.

    Commas between objects and the last bracket become newlines. Newlines inside of an object become tabs: as white
    space that is the same, and in a string neither is JSON.
    """
    first = next(stream, None)
    if first is None:
        return
    if first[0] is None or not is_array(first[0]):
        yield first
        yield from stream
        return
    state = np.zeros(3, np.int64)
    for chunk, position in chain([first], stream):
        if chunk is None:
            yield chunk, position
            return
        out = np.empty(len(chunk), np.uint8)
        length = _kernel()(np.frombuffer(chunk, np.uint8), state, out)
        yield out[:length].tobytes(), position
    if state[0] == 1:  # cut off between two objects
        yield b"\n[", position


def is_array(head: bytes) -> bool:
    """Return whether a file that begins so is an array of objects, and not lines of which the first is damaged.

    Its first object must be followed by a comma, or by the end of the array and of the file.
    """
    if not START.match(head):
        return False
    depth = 0
    for token in STRING_OR_BRACKET.finditer(head):
        if token[0] == b'"':
            break
        depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(token[0], 0)
        if depth == 1 and token[0] == b"}":
            rest = head[token.end() :].lstrip()
            return rest[:1] in (b"", b",") or (rest[:1] == b"]" and not rest[1:].strip())
    return True


@lru_cache
def _kernel() -> Any:
    from stages.corpus.text.kernels import kernel  # takes half a second

    return kernel(_split)


def _split(data: np.ndarray, state: np.ndarray, out: np.ndarray) -> int:
    """Write ``data`` as lines to ``out``; return their bytes. ``state``: depth, inside a string, after a backslash."""
    depth, in_string, escaped, length = state[0], state[1], state[2], 0
    for byte in data:
        byte = np.uint8(9) if byte == 10 else byte
        if in_string:
            in_string = 1 if escaped or byte != ord('"') else 0
            escaped = 1 if not escaped and byte == ord("\\") else 0
        elif byte == ord('"'):
            in_string = 1
        elif byte == ord("{") or byte == ord("["):
            depth += 1
            if depth == 1:
                continue
        elif byte == ord("}") or byte == ord("]"):
            depth -= 1
            byte = np.uint8(10) if depth == 0 else byte
        elif depth == 1 and byte == ord(","):
            byte = np.uint8(10)
        elif depth == 1 and (byte == 32 or byte == 9 or byte == 13):
            continue
        out[length] = byte
        length += 1
    state[0], state[1], state[2] = depth, in_string, escaped
    return length
