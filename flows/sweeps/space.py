"""The search space of a sweep: ranges and choices of params, and its points."""

import copy
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.execution.overrides import find_key
from stages.contract.errors import UserError
from stages.contract.params import load_params, read_params, validated
from stages.contract.yaml_file import parse_yaml

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(:log)?", re.IGNORECASE)
GOLDEN = 0.381966  # share of a range; between usual ends it gives no whole number
FORMS = "write LOW..HIGH, LOW..HIGH:log or ONE,TWO,THREE"

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; whole if both are; drawn on a log scale if ``log``."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """One of ``values``."""

    values: tuple[Value, ...]


Space = dict[str, Range | Choice]
Point = dict[str, Value]


def parse(texts: list[str], params: Path) -> Space:
    """Parse a search space; each of ``texts`` is ``KEY=LOW..HIGH[:log]`` or ``KEY=VALUE,VALUE,...``.

    Raises:
        UserError: not of this form; the file ``params`` has no such key, or does not allow the value.
    """
    where = Path(os.path.relpath(params))
    load_params(where)  # raises for an invalid file
    raw = read_params(where)
    space: Space = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not values:
            raise UserError(f"-S {text}: there is nothing to try. After KEY= {FORMS}.")
        if key in space:
            raise UserError(f"-S {text}: {key} is given twice.")
        section, name = find_key(raw, key, text)
        space[key] = _one(text, values, fractions=isinstance(section[name], float))
    for point in _samples(space):
        validated(_with(raw, point), params)
    return space


def grid(space: Space) -> list[Point] | None:
    """Return every point of a space of choices, in order; None if it contains a range."""
    choices = [part.values for part in space.values() if isinstance(part, Choice)]
    if len(choices) < len(space):
        return None
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*choices)]


def overrides(point: Point) -> list[str]:
    """Return ``point`` as arguments of `dvc exp run -S`."""
    return [f"{key}={as_yaml(value)}" for key, value in point.items()]


def as_yaml(value: Value) -> str:
    """Return ``value`` as YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, int | float) else str(value)


def _one(text: str, values: str, fractions: bool) -> Range | Choice:
    if match := RANGE.fullmatch(values):
        low, high = (_number(end) for end in match.groups()[:2])
        if fractions or isinstance(low, float) or isinstance(high, float):
            low, high = float(low), float(high)
        if low >= high or (match[3] and low <= 0):
            raise UserError(f"-S {text}: LOW must be below HIGH" + (", and above 0 for :log." if match[3] else "."))
        return Range(low, high, bool(match[3]))
    if ".." in values:
        raise UserError(f"-S {text}: not a range of numbers; {FORMS}.")
    try:
        parts = parse_yaml(f"[{values}]", "-S")
    except UserError:
        raise UserError(f"-S {text}: not values separated by commas; {FORMS}.") from None
    chosen = tuple(_number(part) if isinstance(part, str) and re.fullmatch(NUMBER, part) else part for part in parts)
    empty = any(not part.strip() for part in values.split(","))
    if empty or any(not isinstance(part, str | int | float | bool | None) for part in chosen):
        raise UserError(f"-S {text}: a value is empty or a list; {FORMS}.")
    return Choice(tuple(dict.fromkeys(chosen)))


def _number(text: str) -> int | float:
    return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)  # YAML parses 1e-3 as a string


def _samples(space: Space) -> Iterator[Point]:
    """Yield points to validate: each value of the space, and one inside each range, one key at a time.

    The point inside a range must fail where a trial would. For a key that takes multiples of a number it is the lowest
    value plus one; for a key that takes whole numbers it is a fraction.
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


def _with(raw: dict[str, Any], point: Point) -> dict[str, Any]:
    raw = copy.deepcopy(raw)
    for key, value in point.items():
        section, name = find_key(raw, key, key)
        section[name] = value
    return raw
