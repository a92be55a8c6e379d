"""Conversations and preference pairs: read in any known form, checked, counted, split into train and held-out test.

A question (`question`) belongs to one side with all its records, whether they state a split or not.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from stages.contract.accounting import Account
from stages.contract.errors import UserError
from stages.contract.params import Source
from stages.corpus.chats.forms import CONVERSATIONS, PAIRS
from stages.corpus.chats.recognition import Form, Unusable, Value, describe_unknown, problem_of, recognize
from stages.corpus.reading.records import read_records
from stages.corpus.reading.rejections import Record

TEST_SHARE = 0.1  # of the questions whose records do not say which split they belong to
SIDES = ("train", "test", "both")
HUB_FILE = re.compile(r"(\w+)-\d{5}-of-\d{5}.*")  # its name begins with the split
_Example = dict[str, Any]


class Examples(NamedTuple):
    """``train`` and ``test`` in file order, each with its ``id`` and ``file``, of ``read`` records.

    ``rejected`` and ``dropped`` count the others by reason. ``mixture``: see `stages.corpus.chats.mixture`. ``forms``
    counts records by form; ``hint`` describes the first record without one. ``shortened`` counts conversations that
    end with the user and are used up to their last answer.
    """

    train: list[_Example]
    test: list[_Example]
    read: int
    rejected: dict[str, int]
    dropped: dict[str, int]
    mixture: dict[str, dict[str, float]] | None = None
    forms: Mapping[str, int] = {}
    hint: str = ""
    shortened: int = 0

    def without(self, reason: str, dropped: int) -> "Examples":
        """Return these examples with so many more records dropped for ``reason``."""
        return self._replace(dropped=dict(sorted({**self.dropped, reason: dropped}.items()))) if dropped else self

    def account(self, source: str, unit: str) -> Account:
        """Account for the records of ``source`` as training data: ``unit`` names them in the plural."""
        dropped = ({"held out": len(self.test)} if self.test else {}) | self.dropped
        used = self.read - sum(self.rejected.values()) - sum(dropped.values())
        return Account(source, unit, self.read, used, self.rejected, dropped, self.hint)

    def refuse_nothing(self, path: str) -> None:
        """Raise UserError if no record of the source at ``path`` is left to train on."""
        if not self.train:
            raise UserError(
                f"{path} holds nothing to train on: {self.account(path, 'records').line()}. "
                f"{self.hint or 'Add records that can be used; docs/data.md lists their forms.'}"
            )


def read_conversations(source: Source) -> Examples:
    """Read records of a form in CONVERSATIONS as ``messages``: a list of {role, content} that ends with the assistant.

    Raises:
        UserError: as `read_records`.
    """
    found = _read(source, CONVERSATIONS, _answered)
    return found._replace(shortened=sum(example.pop("shortened") for example in (*found.train, *found.test)))


def read_preferences(source: Source) -> Examples:
    """Read records of a form in PAIRS as ``prompt``, ``chosen`` and ``rejected``: lists of {role, content}.

    Raises:
        UserError: as `read_records`.
    """
    return _read(source, PAIRS, _checked)


def question(example: Mapping[str, Any]) -> bytes:
    """Return a digest of an example's question: the system prompt and the user's first turn.

    Unicode form and white space at both ends are ignored. A conversation without a user's turn asks nothing that others
    could share, so all of it counts.
    """
    messages = example.get("prompt") or example["messages"]
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
    asked = messages if first is None else [m for m in messages[:first] if m["role"] == "system"] + [messages[first]]
    return hashlib.sha256(json.dumps([[m["role"], _folded(m["content"])] for m in asked]).encode()).digest()


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _read(source: Source, forms: Sequence[Form], checked: Callable[[Value], Value]) -> Examples:
    records, unreadable = read_records(source)
    rejected, seen, hint = Counter(unreadable.reasons), Counter[str](), ""
    read, splits = len(records) + rejected.total(), _file_splits(records)
    examples, stated = [], []
    for record in records:
        if form := recognize(record.value, forms):
            seen[form.name] += 1
        else:
            rejected[problem_of(record.value, forms)] += 1
            hint = hint or describe_unknown(record.value, forms)
            continue
        try:
            split = _stated(record.value.get("split") or splits.get(record.file))
            examples.append(_named(record) | checked(form.convert(record.value)))
            stated.append(split)
        except Unusable as e:
            rejected[str(e)] += 1
    examples, stated, lonely = _paired(examples, stated)
    sides = _sides([question(example) for example in examples], stated)
    train, test, both = ([e for e, at in zip(examples, sides, strict=True) if at == side] for side in SIDES)
    found = Examples(train, test, read, dict(sorted(rejected.items())), {}, None, dict(seen), hint)
    found = found.without("no answer of the other label", lonely)
    joined = read - rejected.total() - lonely - len(examples)
    return found.without("joined to a pair", joined).without("prompt is held out", len(both))


def _named(record: Record) -> _Example:
    name = record.value.get("id")
    usable = name and isinstance(name, str | int | float)
    return {"id": str(name) if usable else f"{record.file}:{record.line}", "file": record.file}


def _file_splits(records: Sequence[Record]) -> dict[str, str]:
    """Return the split in the name of each file of a hub data set; none unless one of them is held out."""
    files = {record.file: HUB_FILE.fullmatch(PurePath(record.file).name) for record in records}
    splits = {file: match[1] for file, match in files.items() if match}
    return splits if any(_is_test(split) for split in splits.values()) else {}


def _paired(examples: list[_Example], stated: list[str]) -> tuple[list[_Example], list[str], int]:
    """Join labeled completions of one prompt to pairs, in order; return how many have no partner, too."""
    pairs: list[_Example] = []
    splits: list[str] = []
    waiting: dict[str, list[tuple[_Example, str]]] = {}
    for example, split in zip(examples, stated, strict=True):
        if "label" not in example:
            pairs.append(example)
            splits.append(split)
            continue
        queue = waiting.setdefault(json.dumps(example["prompt"]), [])
        if not queue or queue[0][0]["label"] == example["label"]:
            queue.append((example, split))
            continue
        other, first = queue.pop(0)
        good, bad = (example, other) if example["label"] else (other, example)
        pair = {"prompt": good["prompt"], "chosen": good["completion"], "rejected": bad["completion"]}
        pairs.append({"id": other["id"], "file": other["file"]} | pair)
        splits.append("test" if "test" in (first, split) else first)
    return pairs, splits, sum(map(len, waiting.values()))


def _sides(questions: list[bytes], stated: list[str]) -> list[str]:
    """Return each record's side: its own ``split``, else that of its question elsewhere, else by the question's hash.

    "both": a record to train on whose question another record holds out.
    """
    held_out = {q for q, split in zip(questions, stated, strict=True) if split == "test"}
    trained = {q for q, split in zip(questions, stated, strict=True) if split == "train"} - held_out
    sides = []
    for q, split in zip(questions, stated, strict=True):
        if split == "train":
            sides.append("both" if q in held_out else "train")
        else:
            by_hash = q not in trained and int.from_bytes(q[:4], "big") / 2**32 < TEST_SHARE
            sides.append("test" if q in held_out or by_hash else "train")
    return sides


def _stated(split: Any) -> str:
    """Return train or test, also for names like train_sft and validation; "" for no split.

    Raises:
        Unusable: none of these.
    """
    if split is None:
        return ""
    if _is_test(split):
        return "test"
    if isinstance(split, str) and split.lower().startswith("train"):
        return "train"
    raise Unusable("unknown split")


def _is_test(split: Any) -> bool:
    return isinstance(split, str) and split.lower().startswith(("test", "val", "eval", "dev"))


def _answered(value: Value) -> Value:
    """Return a conversation up to the assistant's last turn."""
    messages = value["messages"]
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    if last < 0:
        raise Unusable("no assistant turn")
    return {"messages": messages[: last + 1], "shortened": last + 1 < len(messages)}


def _checked(pair: Value) -> Value:
    """Return a pair, or a labeled completion, whose turns are in order."""
    if pair["prompt"][-1]["role"] != "user":
        raise Unusable("prompt: does not end in a user's turn")
    answers = [side for side in ("chosen", "rejected", "completion") if side in pair]
    if any(pair[side][-1]["role"] != "assistant" for side in answers):
        raise Unusable(f"{' or '.join(answers)}: no assistant turn")
    if "label" not in pair and pair["chosen"] == pair["rejected"]:
        raise Unusable("chosen and rejected are the same")
    return pair
