"""Read evaluations in their own form (task, format, ...) or a public one. Not for running them."""

import re
from pathlib import PurePath
from typing import Any, NamedTuple

from stages.contract.params import Source
from stages.corpus.chats.recognition import Form, Unusable, Value, describe_unknown, first_of, problem_of, recognize
from stages.corpus.reading.records import ReadAgain, read_records
from stages.corpus.reading.rejections import Record, count_reasons

ASKED = "query|question|question_stem|ctx|goal|prompt|input"
CHOICES = "choices|options|endings"
GOLD = "gold|answerKey|answer_index|answer|label|target"
TARGET = "target|answer|answers|completion|output"
SPLIT = re.compile(r"(train|test|val|validation|dev|data)([-_.].*)?", re.IGNORECASE)
FINAL = re.compile(r"####\s*(.+?)\s*$")  # GSM8K's answer, after how it is found


class Evaluations(NamedTuple):
    """``values`` of records with a form, ``rejected`` others by reason; ``forms`` and ``hint`` as `Examples`."""

    values: list[Value]
    rejected: dict[str, int]
    forms: dict[str, int]
    hint: str


def read_evaluations(source: Source, read: ReadAgain | None = None) -> Evaluations:
    """Return the records of ``source`` in this repository's form; a record without a task is one of its file's.

    ``read`` returns these records; None: `read_records`.

    Raises:
        UserError: as `read_records`.
    """
    records, unreadable = read() if read else read_records(source)
    values, rejected, forms, hint = [], count_reasons(unreadable), dict[str, int](), ""
    for record in records:
        form = recognize(record.value, EVALUATIONS)
        try:
            if form is None:
                hint = hint or describe_unknown(record.value, EVALUATIONS)
                raise Unusable(problem_of(record.value, EVALUATIONS))
            forms[form.name] = forms.get(form.name, 0) + 1
            values.append({"task": _task(source, record)} | form.convert(record.value))
        except Unusable as e:
            rejected[str(e)] = rejected.get(str(e), 0) + 1
    return Evaluations(values, dict(sorted(rejected.items())), forms, hint)


def _task(source: Source, record: Record) -> str:
    """Return the name of the file, or of a folder above it if that only names a split."""
    path = PurePath(source.path, record.file) if PurePath(source.path).name != record.file else PurePath(source.path)
    names = [path.name.split(".")[0], *(part for part in path.parts[-2::-1])]
    return next((name for name in names if not SPLIT.fullmatch(name)), names[0])


def _own(value: Value) -> Value:
    return {"id": value.get("id")} | {name: value[name] for name in ("task",) if value.get(name) is not None}


def _choice(value: Value) -> Value:
    choices, gold = first_of(value, CHOICES), first_of(value, GOLD)
    labels: list[Any] = []
    if isinstance(choices, dict):  # of lists text and label
        labels, choices = choices.get("label") or [], choices.get("text")
    if not isinstance(choices, list):
        raise Unusable("choices are not a list")
    if choices and isinstance(choices[0], dict):
        labels = [choice.get("label") for choice in choices if isinstance(choice, dict)]
        choices = [choice.get("text") for choice in choices if isinstance(choice, dict)]
    place = _place(gold, [*map(str, labels)], choices)
    return _own(value) | {"format": "mc", "query": first_of(value, ASKED), "choices": choices, "gold": place}


def _place(gold: Any, labels: list[str], choices: list[Any]) -> int:
    """Return the index of the right choice, which is given by index, label, letter or text."""
    if isinstance(gold, int) and not isinstance(gold, bool):
        return gold
    if isinstance(gold, str):
        for names in (labels, choices, [chr(ord("A") + k) for k in range(len(choices))]):
            if gold.strip() in names:
                return names.index(gold.strip())
        if gold.strip().isdecimal():
            return int(gold)
    raise Unusable("gold is not the place of a choice")


def _two(value: Value) -> Value:
    return _choice({**value, "choices": [value["sol1"], value["sol2"]]})


def _answer(value: Value) -> Value:
    found = first_of(value, TARGET)
    if isinstance(found, dict):  # TriviaQA: value, aliases; SQuAD: text
        found = [found["value"], *(found.get("aliases") or [])] if found.get("value") else found.get("text")
    answers = found if isinstance(found, list) else [found]
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise Unusable("target is not a text")
    asked, context = first_of(value, ASKED), first_of(value, "context|passage")
    query = f"{context}\n\n{asked}" if isinstance(context, str) and isinstance(asked, str) else asked
    target = match[1] if (match := FINAL.search(answers[0])) else answers[0]
    aliases = {"aliases": list(dict.fromkeys(answers[1:]))} if len(answers) > 1 else {}
    return _own(value) | {"format": "gen", "query": query, "target": target} | aliases


EVALUATIONS = (
    Form("task and format", "format", lambda value: value),
    Form("multiple choice", f"{ASKED} {CHOICES} {GOLD}", _choice),
    Form("two solutions", "goal sol1 sol2 label", _two),
    Form("question and answer", f"{ASKED} {TARGET}", _answer),
)
