"""What a sweep tries: ranges and choices of params, and a point of them."""

import copy
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

from stages.contract.errors import UserError
from stages.contract.params import load_params, validated

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(:log)?", re.IGNORECASE)
GOLDEN = 0.381966  # of the way: no whole number between usual ends
FORMS = "write LOW..HIGH, LOW..HIGH:log or ONE,TWO,THREE"


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included, whole ones if these are; even on a log scale if ``log``."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """One of ``values``."""

    values: tuple


Space = dict[str, Range | Choice]
Point = dict[str, object]


def parse(texts: list[str], params: Path) -> Space:
    """The space that ``texts``, each ``KEY=LOW..HIGH[:log]`` or ``KEY=VALUE,VALUE,...``, describe.

    Raises:
        UserError: not of this form; no such key in the file ``params``, or a value that it must not have.
    """
    load_params(os.path.relpath(params))  # says what is wrong with it
    raw = YAML(typ="safe").load(params.read_text(encoding="utf-8"))
    space: Space = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not values:
            raise UserError(f"-S {text}: there is nothing to try. After the key and '=' {FORMS}.")
        if key in space:
            raise UserError(f"-S {text}: {key} is given twice.")
        section, name = _place(raw, key, text)
        space[key] = _one(text, values, fractions=isinstance(section[name], float))
    for point in _samples(space):
        validated(_with(raw, point), params)
    return space


def grid(space: Space) -> list[Point] | None:
    """Every point of a space of choices, in their order; None if there is a range in it."""
    if any(isinstance(part, Range) for part in space.values()):
        return None
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*(p.values for p in space.values()))]


def overrides(point: Point) -> list[str]:
    """``point`` as `dvc exp run -S` takes it."""
    return [f"{key}={said(value)}" for key, value in point.items()]


def said(value) -> str:
    """``value`` as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, int | float) else str(value)


def _one(text: str, values: str, fractions: bool) -> Range | Choice:
    if found := RANGE.fullmatch(values):
        low, high = (_number(end) for end in found.groups()[:2])
        if fractions or isinstance(low, float) or isinstance(high, float):
            low, high = float(low), float(high)
        if low >= high or (found[3] and low <= 0):
            raise UserError(f"-S {text}: LOW must be below HIGH" + (", and above 0 for :log." if found[3] else "."))
        return Range(low, high, bool(found[3]))
    if ".." in values:
        raise UserError(f"-S {text}: not a range of numbers; {FORMS}.")
    try:
        parts = YAML(typ="safe").load(f"[{values}]")
    except YAMLError:
        raise UserError(f"-S {text}: not values with commas between them; {FORMS}.") from None
    chosen = tuple(_number(part) if isinstance(part, str) and re.fullmatch(NUMBER, part) else part for part in parts)
    empty = any(not part.strip() for part in values.split(","))
    if empty or any(not isinstance(part, str | int | float | bool | None) for part in chosen):
        raise UserError(f"-S {text}: a value is empty or a list; {FORMS}.")
    return Choice(tuple(dict.fromkeys(chosen)))


def _number(text: str) -> int | float:
    return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)  # YAML takes 1e-3 for a word


def _place(raw: dict, key: str, text: str) -> tuple[dict, str]:
    """The section that holds the dotted ``key``, and its name there."""
    *sections, name = key.split(".")
    found = raw
    for section in sections:
        found = found.get(section) if isinstance(found, dict) else None
    if not isinstance(found, dict) or name not in found:
        known = ", ".join(found if isinstance(found, dict) else raw)
        raise UserError(f"-S {text}: params.yaml has no {key}. It has there: {known}.")
    return found, name


def _samples(space: Space) -> Iterator[Point]:
    """Points in which each value that stands in the space, and one inside each range, occurs, one at a time.

    The one inside: next to the lowest of whole numbers, for keys that take multiples; a fraction between others, for
    keys that take whole numbers only.
    """
    for key, part in space.items():
        if isinstance(part, Choice):
            values = part.values
        elif isinstance(part.low, int):
            values = part.low, part.low + 1, part.high
        else:
            values = part.low, part.low + GOLDEN * (part.high - part.low), part.high
        for value in values:
            yield {key: value}


def _with(raw: dict, point: Point) -> dict:
    raw = copy.deepcopy(raw)
    for key, value in point.items():
        section, name = _place(raw, key, key)
        section[name] = value
    return raw
