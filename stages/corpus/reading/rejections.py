"""Count rejected records by reason, and keep the first of them for people to look at.

The readers of this room decide which records are rejected. `filtering.rules` decides which documents are dropped.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from stages.contract.accounting import Account
from stages.corpus.reading.streams import EXCERPT

SAME_NAME = "columns of the same name"
KEPT = 1000  # rejected records with an excerpt; the others are only counted by reason


class Record(NamedTuple):
    """One JSON object, Parquet row or text file; ``file`` relative to its Source, ``line`` from 1."""

    file: str
    line: int
    value: dict[str, Any]


class Rejected(NamedTuple):
    """A record that cannot be used, and the reason. ``line`` 0 is the whole file."""

    file: str
    line: int
    reason: str
    excerpt: str


class Rejections:
    """The rejected records of a source: ``reasons`` counts all, ``first`` holds the first KEPT."""

    def __init__(self, entries: "Iterable[Rejected] | Rejections" = ()) -> None:
        self.reasons: Counter[str] = Counter()
        self.first: list[Rejected] = []
        self.extend(entries)

    def append(self, entry: Rejected) -> None:
        self.reasons[entry.reason] += 1
        if len(self.first) < KEPT:
            self.first.append(entry)

    def count(self, reason: str, records: int) -> None:
        """Count ``records`` without keeping them."""
        if records:
            self.reasons[reason] += records

    def extend(self, entries: "Iterable[Rejected] | Rejections") -> None:
        if isinstance(entries, Rejections):
            self.reasons.update(entries.reasons)
            self.first += entries.first[: KEPT - len(self.first)]
            return
        for entry in entries:
            self.append(entry)

    def merge(self, other: "Rejections") -> "Rejections":
        """Return both, the first KEPT in order of file and line."""
        both = self + other
        both.first = sorted(self.first + other.first)[:KEPT]
        return both

    def save(self, path: Path) -> None:
        first = [list(entry) for entry in self.first]
        path.write_bytes(orjson.dumps({"reasons": dict(self.reasons), "first": first}))

    @classmethod
    def load(cls, path: Path) -> "Rejections":
        value, rejected = orjson.loads(path.read_bytes()), cls()
        rejected.reasons.update(value["reasons"])
        rejected.first = [Rejected(*entry) for entry in value["first"]]
        return rejected

    def __add__(self, other: "Rejections") -> "Rejections":
        both = Rejections(self)
        both.extend(other)
        return both

    def __len__(self) -> int:
        return self.reasons.total()

    def __iter__(self) -> Iterator[Rejected]:
        return iter(self.first)


def write_rejected(path: Path, rejected: Rejections) -> None:
    """Write the first KEPT as JSON lines {file, line, reason, excerpt}, in order of file and line."""
    with path.open("wb") as f:
        for entry in sorted(rejected)[:KEPT]:
            f.write(orjson.dumps(entry._asdict(), option=orjson.OPT_APPEND_NEWLINE))


def count_reasons(rejected: Rejections) -> dict[str, int]:
    """Return how many records were rejected for each reason, in order of the reasons."""
    return dict(sorted(rejected.reasons.items()))


def account_of(source: str, unit: str, used: int, rejected: Rejections) -> Account:
    """Return the account of a source with so many ``used`` records and the rejected ones."""
    return Account(source, unit, used + len(rejected), used, count_reasons(rejected))


def excerpt(value: Any) -> str:
    """Return the beginning of a record, for a person to recognize it by."""
    try:
        shown = repr(value)
    except RecursionError:  # nested a thousand deep
        shown = repr(list(value))[:EXCERPT] if isinstance(value, dict) else "nested too deep to be shown"
    return printable(shown[:EXCERPT].encode("utf-8", "replace"))


def printable(data: bytes) -> str:
    """Return the beginning of ``data`` as text without control characters."""
    text = data[:EXCERPT].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "�" for c in text)


def summary(rejected: Rejections) -> str:
    """Return the reasons and the first place, for an error that no record was usable."""
    if not rejected:
        return "every file is empty"
    reasons = ", ".join(f"{count:,} x {reason}" for reason, count in count_reasons(rejected).items())
    first = min(rejected)
    return f"{reasons} (first: {first.file}, line {first.line}). JSONL is one JSON object on each line"
