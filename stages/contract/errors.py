"""Errors that the person at the keyboard can mend, a stop on request, and the texts of both. Bugs raise others."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from stages.contract.secrets import redact

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

SHOWN_ERRORS = 10


class UserError(Exception):
    """An error that the person at the keyboard can mend. Printed as one line, never with a traceback.

    The message says what is wrong, the value, where it is and what to do. It holds no password: it may quote another
    program, and it reaches terminals, Prefect's database and alerts.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(redact(str(message)))


class Preempted(Exception):
    """A stop on request: the stage left a checkpoint, from which the next execution resumes."""


def shorten(value: object, limit: int = 200) -> str:
    """Return ``value`` as one printable line of at most ``limit`` characters."""
    text = "".join(c if c.isprintable() else "�" for c in " ".join(str(value)[: 4 * limit].split()))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def one_line(error: BaseException | None) -> str:
    """Return an exception and its causes as one line, without repeating itself."""
    text = ""
    while error:
        words = shorten(str(error) or type(error).__name__, 600)
        text += f"{': ' if text else ''}{words}" if words not in text else ""
        error = error.__cause__
    return text


def explain_invalid(error: "ValidationError", model: "type[BaseModel]", where: str | Path) -> str:
    """Return a line for each of the first problems of the values in ``where``, which are not of ``model``."""
    lines = [f"{where}: {line}" for line in _problems(error, model)]
    more = [f"{where}: and {len(lines) - SHOWN_ERRORS:,} more."] if len(lines) > SHOWN_ERRORS else []
    return "\n".join([*lines[:SHOWN_ERRORS], *more])


def _problems(error: "ValidationError", model: "type[BaseModel]") -> Iterator[str]:
    """Yield a line for each problem: the dotted key, the value, what is allowed."""
    for problem in error.errors(include_url=False):
        # Union members ("int", "literal['auto']") appear in `loc` after the key; a key is a plain identifier.
        parts = (str(part) for part in problem["loc"])
        key = shorten(".".join(part for part in parts if part.isidentifier() and part not in ("float", "int")))
        allowed = shorten(problem["msg"].removeprefix("Value error, "), 400)
        if problem["type"] == "extra_forbidden":
            fields = _section(model, problem["loc"][:-1]).model_fields
            yield f"{key}: no such parameter. Allowed here: {', '.join(fields)}."
        elif problem["type"] == "missing":
            yield f"{key}: missing; every parameter is stated in params.yaml."
        elif problem["type"] == "value_error":
            yield f"{key}: {allowed}"
        else:
            yield f"{key}: {_printable(problem['input'])} is not allowed. {allowed}."


def _printable(value: object) -> str:
    """Return ``value`` for an error; Python writes no whole number of more than 4,300 digits."""
    try:
        return shorten(repr(value), 100)
    except ValueError:
        return "a number of thousands of digits"


def _section(model: "type[BaseModel]", path: tuple[int | str, ...]) -> "type[BaseModel]":
    """Return the model of the section ``path`` in ``model``."""
    section: Any = model
    for name in path:
        kind = section.model_fields[name].annotation if isinstance(name, str) else section
        section = get_args(kind)[0] if get_origin(kind) is list else kind
    return section
