"""YAML that people, DVC or another program wrote: read as data, within limits; and values changed in its text."""

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, Event, ScalarEvent

from stages.contract.errors import UserError, one_line, shorten

LONGEST = 2**23  # bytes of a file
DEEPEST = 32
MOST_VALUES = 100_000  # an alias counts as its values
VALUE = re.compile(r"\"(?:\\.|[^\"\\])*\"|'(?:''|[^'])*'|.+?(?=\s*(?:[,}]|\s#|$))")  # of a key, in a line


def read_text(path: Path) -> str:
    """Return the text of the file ``path``.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is no file (a pipe would be waited for), cannot be read, is too long or not UTF-8.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is not a file. Put a text file there.")
        if status.st_size > LONGEST:
            raise UserError(f"{path} has {status.st_size:,} bytes; at most {LONGEST:,} are read.")
        return Path(path).read_bytes().decode("utf-8")
    except FileNotFoundError:
        if os.path.islink(path):
            raise UserError(f"{path} is a broken link to {shorten(os.readlink(path))}.") from None
        raise
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}.") from None
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not valid YAML: {e.reason} at byte {e.start}; it must be UTF-8.") from None


def parse_yaml(text: str, where: str | Path, most: int = MOST_VALUES) -> Any:
    """Return the one document in ``text``, the content of ``where``, of at most ``most`` values.

    Raises:
        UserError: it is none within limits.
    """
    try:
        _check_limits(YAML(typ="safe").parse(text), where, most)
        return YAML(typ="safe").load(text)
    except UserError:
        raise
    except Exception as e:  # of a tag or a date: whatever int(), float() and datetime raise
        raise UserError(f"{where}: not valid YAML: {one_line(e)}") from None


def _check_limits(events: Iterable[Event], where: str | Path, most: int) -> None:
    """Raise UserError if the document is too deep or, with its aliases written out, too large to be handled."""
    values: dict[str | None, int] = {}  # anchor -> its number of values
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and the values before it
    total = 0
    for event in events:
        if isinstance(event, AliasEvent):
            if event.anchor in (name for name, _ in open_nodes):
                raise UserError(f"{where}: *{shorten(event.anchor, 40)} contains itself.")
            total += values.get(event.anchor, 1)
        elif isinstance(event, CollectionEndEvent):
            anchor, before = open_nodes.pop()
            values[anchor] = total - before
        elif isinstance(event, CollectionStartEvent):
            open_nodes.append((event.anchor, total))
            total += 1
        elif isinstance(event, ScalarEvent):
            total += 1
            values[event.anchor] = 1
        if len(open_nodes) > DEEPEST:
            raise UserError(f"{where}: nested more than {DEEPEST} deep.")
        if total > most:
            raise UserError(f"{where}: more than {most:,} values, aliases (*) written out.")


def check_plain(value: Any, where: str | Path) -> None:
    """Raise UserError if ``value`` holds a set, a date or bytes: YAML has them, JSON and so a fingerprint do not."""
    for dotted, key, inner in walk_values(value):
        if not isinstance(key, str | None):
            problem = f"a key of type {type(key).__name__}; write it in quotes"
        elif not isinstance(inner, dict | list | str | int | float | bool | None):
            problem = f"a value of type {type(inner).__name__}"
        else:
            continue
        raise UserError(
            f"{where}: {shorten(f'{dotted}: {problem}')}. Write text, a number, true, false, null, a list or keys with "
            "values."
        )


def walk_values(value: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield dotted key, key and value of every entry of ``value``, at any depth; the key is None in a list."""
    if isinstance(value, dict):
        entries: list[tuple[Any, Any, Any]] = [(key, key, inner) for key, inner in value.items()]
    elif isinstance(value, list):
        entries = [(k, None, inner) for k, inner in enumerate(value)]
    else:
        return
    for name, key, inner in entries:
        dotted = f"{prefix}.{name}" if prefix else str(name)
        yield dotted, key, inner
        yield from walk_values(inner, dotted)


def rewritten(text: str, changed: Mapping[str, object]) -> str:
    """Return ``text`` with the values of ``changed``, by dotted key, and every other character as it was.

    A comment behind a value stays in its column where there is room.
    """
    document, lines = YAML().load(text), text.splitlines(keepends=True)
    for key, value in changed.items():
        line, column = place_of(document, key)
        before, old, after = cut(lines[line], column)
        new = scalar(value)
        space = len(after) - len(after.lstrip(" "))
        if after.lstrip(" ").startswith("#"):
            after = " " * max(1, space + len(old) - len(new)) + after.lstrip(" ")
        lines[line] = before + new + after
    return "".join(lines)


def place_of(document: Any, key: str) -> tuple[int, int]:
    """Return line and column, from 0, of the value of a dotted ``key`` in what ruamel's `YAML().load` returned."""
    *sections, name = key.split(".")
    for section in sections:
        document = document[section]
    line, column = document.lc.value(name)
    return line, column


def cut(line: str, column: int) -> tuple[str, str, str]:
    """Cut ``line`` into the text before the value that begins at ``column``, the value, and the rest."""
    match = VALUE.match(line, column)
    assert match is not None
    return line[:column], match[0], line[match.end() :]


def scalar(value: object) -> str:
    """Return ``value`` as YAML and DVC's command line read it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float) and "e" in (text := repr(value)) and "." not in text:
        return text.replace("e", ".0e")  # YAML 1.1 takes 5e-07 for a word
    if isinstance(value, str) and not (re.fullmatch(r"[\w./-]+", value) and YAML(typ="safe").load(value) == value):
        return json.dumps(value, ensure_ascii=False)  # also what YAML would take for a number or a date
    return str(value)
