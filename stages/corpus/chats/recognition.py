"""Recognize the public form of a record by its fields, and convert it to this repository's own.

A form is a row of a table: CONVERSATIONS and PAIRS in `forms`, EVALUATIONS in `evaluation.measuring.evaluations`.
Documents have only other names of their text: `stages.corpus.reading.tables`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from stages.contract.errors import shorten

Value = dict[str, Any]  # of a record
SHOWN = 12  # fields named in a message


class Unusable(ValueError):
    """The reason why a record of a known form cannot be used."""


class Form(NamedTuple):
    """``fields``: the names a record must have, separated by spaces; `a|b` is either of two.

    ``convert`` returns the record in this repository's form or raises Unusable. ``when`` tells forms of the same fields
    apart.
    """

    name: str
    fields: str
    convert: Callable[[Value], Value]
    when: Callable[[Value], bool] = lambda value: True

    def missing(self, value: Value) -> list[str]:
        """Return the fields that ``value`` lacks; null counts as missing."""
        return [field for field in self.fields.split() if first_of(value, field) is None]


def first_of(value: Mapping[str, Any], names: str) -> Any:
    """Return the first of the fields ``names`` (`a|b`) that is not null, or None."""
    for name in names.split("|"):  # a generator costs a fifth of the time to read conversations
        if (field := value.get(name)) is not None:
            return field
    return None


def recognize(value: Value, forms: Sequence[Form]) -> Form | None:
    """Return the first form that ``value`` has."""
    return next((form for form in forms if not form.missing(value) and form.when(value)), None)


def nearest_form(value: Value, forms: Sequence[Form]) -> Form:
    """Return the form of which ``value`` has the most fields, and then lacks the fewest."""

    def score(form: Form) -> tuple[int, int]:
        missing = len(form.missing(value))
        return len(form.fields.split()) - missing, -missing

    return max(forms, key=score)  # the first of equals


def problem_of(value: Value, forms: Sequence[Form]) -> str:
    """Return the reason why a record has no known form: "no chosen"."""
    missing = nearest_form(value, forms).missing(value)
    return f"no {missing[0].split('|')[0]}" if missing else "no known form"


def describe_unknown(value: Value, forms: Sequence[Form]) -> str:
    """Return one sentence: the fields of a record without a known form, the nearest form, and the remedy."""
    names = [name for name in value if value[name] is not None]
    shown = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
    near = nearest_form(value, forms)
    missing = near.missing(value) or near.fields.split()
    lacks = " and ".join(" or ".join(field.split("|")) for field in missing)
    free = next((name for name in names if name not in re.split(r"[ |]", near.fields)), "NAME")
    return (
        f"Fields: {shorten(shown, 200)}; the nearest form is {near.name}, which needs {lacks}. If yours has "
        f"another name, write it in params.yaml, e.g. fields: {{{missing[0].split('|')[0]}: {shorten(free, 40)}}}."
    )


def describe_forms(source: str, forms: Mapping[str, int], unit: str) -> str:
    """Return "data.sft: ShareGPT, 1,357 conversations"."""
    known = sorted(forms.items(), key=lambda form: -form[1])
    names = ", ".join(name if len(known) == 1 else f"{name} ({count:,})" for name, count in known)
    return f"{source}: {names or 'no known form'}, {sum(forms.values()):,} {unit}"
