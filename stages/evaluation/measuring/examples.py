"""Examples of data.evals, checked field by field: any JSON value may stand in any field of a record."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from stages.contract.accounting import Account
from stages.evaluation.measuring.choice import spread

NOT_RUN = {
    "code": "would run code that the model writes",
    "minpair": "format not supported here",
    "schema": "format not supported here",
    "mc_multi": "format not supported here",
}
FORMATS = ("mc", "cloze", "gen")
LONGEST_NAME = 200  # characters of a task's name
NAMELESS = "a task without a name"


class Example(NamedTuple):
    """A question of ``format`` mc (``choices``, ``gold``), cloze (``target``) or gen (``target``, ``aliases``).

    ``id`` is "" where the record has none.
    """

    format: str
    id: str
    query: str
    choices: tuple[str, ...] = ()
    gold: int = 0
    target: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def continuations(self) -> list[str]:
        """Return the answers whose probability is measured, as they follow the query; gen has none.

        One space joins query and answer, unless the query ends or the answer begins with white space of its own.
        """
        answers = {"mc": self.choices, "cloze": (self.target,), "gen": ()}[self.format]
        return [answer if self.query[-1].isspace() or answer[0].isspace() else f" {answer}" for answer in answers]


class Tasks(NamedTuple):
    """``found``: examples by task, of one format each. ``not_run``: why records of a task are not among them.

    ``read`` records; ``rejected`` and ``dropped`` count those without an example here, by reason.
    """

    found: dict[str, list[Example]]
    not_run: dict[str, str]
    read: int
    rejected: dict[str, int]
    dropped: dict[str, int]

    def account(self, unreadable: dict[str, int]) -> Account:
        """Account for data.evals; ``unreadable`` counts rejected records by reason."""
        read, used = self.read + sum(unreadable.values()), sum(map(len, self.found.values()))
        return Account("data.evals", "records", read, used, unreadable | self.rejected, self.dropped)


class Malformed(ValueError):
    """Why a record of a format that is run is no example of it."""


class Beyond(ValueError):
    """Why an example cannot be measured on these models."""


def tasks(records: Sequence[dict[str, Any]], limit: int | None, context: int | None) -> Tasks:
    """Sort ``records`` into tasks.

    Args:
        limit: examples of a task, spread evenly over its records; None: all.
        context: of the models, in tokens. An answer of more bytes might not fit and is dropped; None: none is.
    """
    found: dict[str, list[Example]] = {}
    not_run: dict[str, str] = {}
    why: dict[str, Counter[str]] = {}
    rejected: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for record in records:
        name, kind = _name(record.get("task")), record.get("format")
        if kind is None or (isinstance(kind, str) and kind not in FORMATS):
            not_run[name or NAMELESS] = NOT_RUN.get(str(kind), f"unknown format {str(kind)[:40]!r}")
            dropped["format is not run"] += 1
            continue
        try:
            example = _example(record, name, kind, context)
        except (Malformed, Beyond) as e:
            (rejected if isinstance(e, Malformed) else dropped)[str(e)] += 1
            why.setdefault(name or NAMELESS, Counter())[str(e)] += 1
        else:
            found.setdefault(name, []).append(example)
    for name, rows in found.items():
        same = [row for row in rows if row.format == rows[0].format]
        if others := len(rows) - len(same):
            dropped["other format than that of its task"] += others
            why.setdefault(name, Counter())[f"other format than {rows[0].format}"] += others
        found[name] = spread(same, limit)
        dropped["beyond eval.limit"] += len(same) - len(found[name])
    not_run |= {name: ", ".join(f"{n:,} x {what}" for what, n in sorted(whys.items())) for name, whys in why.items()}
    return Tasks(found, not_run, len(records), dict(sorted(rejected.items())), dict(sorted((+dropped).items())))


def _name(task: Any) -> str:
    """Return a task's name as text, "" if it is not a name."""
    name = str(task).strip() if isinstance(task, str | int) and not isinstance(task, bool) else ""
    return name if name.isprintable() and len(name) <= LONGEST_NAME else ""


def _example(record: dict[str, Any], name: str, kind: Any, context: int | None) -> Example:
    if not isinstance(kind, str):
        raise Malformed("format is not a text")
    if not name:
        raise Malformed("task is not a name")
    identifier = record.get("id")
    usable = isinstance(identifier, str | int | float) and not isinstance(identifier, bool)
    asked: dict[str, Any] = {"format": kind, "id": str(identifier) if usable else "", "query": _text(record, "query")}
    if kind == "mc":
        example = Example(**asked, **_choices(record))
    elif kind == "cloze":
        example = Example(**asked, target=_text(record, "target"))
    else:
        example = Example(**asked, target=_text(record, "target"), aliases=_aliases(record))
    answers = [*example.continuations, example.target]
    if context is not None and max(len(answer.encode("utf-8", "replace")) for answer in answers) > context:
        raise Beyond("answer beyond the context")
    return example


def _text(record: dict[str, Any], field: str) -> str:
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        raise Malformed(f"{field} is not a text")
    return value


def _choices(record: dict[str, Any]) -> dict[str, Any]:
    choices, gold = record.get("choices"), record.get("gold")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise Malformed("choices are not two or more texts")
    if type(gold) is not int or not 0 <= gold < len(choices):  # True is an int, too
        raise Malformed("gold is not the place of a choice")
    return {"choices": tuple(choices), "gold": gold}


def _aliases(record: dict[str, Any]) -> tuple[str, ...]:
    aliases = record.get("aliases") or []
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise Malformed("aliases are not texts")
    return tuple(aliases)
