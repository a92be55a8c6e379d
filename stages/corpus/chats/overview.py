"""Describe conversations and pairs before there is a tokenizer: turns, lengths, repeated prompts, some records.

Lengths are bytes; in tokens they are an estimate.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.contract.errors import shorten
from stages.corpus.chats.conversations import Examples, question
from stages.corpus.chats.forms import PAIRED
from stages.corpus.chats.messages import Messages

SAMPLES = 5
SAMPLE_CHARACTERS = 300
SMALL_VOCABULARY = 8192
SMALL_BYTES, LARGE_BYTES = 3, 4  # of English a token: 2.9 measured at 2,048 entries, 4.2 at 32,000


def describe_examples(examples: Examples, row_tokens: int, vocabulary: int) -> list[str]:
    """Return lines on the records of ``examples``, held-out ones too.

    Args:
        examples: conversations or pairs.
        row_tokens: tokens of a row, to which a conversation and either side of a pair are cut.
        vocabulary: entries of the tokenizer to come.
    """
    records = list({id(record): record for record in (*examples.train, *examples.test)}.values())  # each copy once
    sides = [side for record in records for side in _sides(record)]
    lengths = np.array([sum(len(m["content"].encode()) for m in side) for side in sides])
    turns = Counter(message["role"] for side in sides for message in side)
    half, most = np.percentile(lengths, [50, 95])
    a_token = SMALL_BYTES if vocabulary < SMALL_VOCABULARY else LARGE_BYTES
    long = int((lengths > row_tokens * a_token).sum())
    asked = Counter(map(question, records))
    repeated = [count for count in asked.values() if count > 1]
    lines = [
        "turns: " + ", ".join(f"{count:,} {role}" for role, count in turns.most_common()),
        f"length: median {half:,.0f} bytes, 95 % up to {most:,.0f}, longest {lengths.max():,}",
        f"about {long:,} longer than pack.row_tokens ({row_tokens:,}), estimated at {a_token} bytes a token",
        f"prompts: {len(asked):,} different, {len(repeated):,} of them in several records ({sum(repeated):,})",
    ]
    if examples.shortened:
        lines.append(f"{examples.shortened:,} end with the user and are used up to their last answer")
    places = np.unique(np.linspace(0, len(records) - 1, SAMPLES).astype(int))
    return [*lines, *(line for place in places.tolist() for line in _sample(records[place]))]


def _sides(record: dict[str, Any]) -> list[Messages]:
    if "messages" in record:
        return [record["messages"]]
    return [record["prompt"] + record[side] for side in PAIRED]


def _sample(record: dict[str, Any]) -> list[str]:
    """Return a record as lines: its id, and what each field or turn says."""
    parts: Sequence[tuple[str, str]]
    if "messages" in record:
        parts = [(message["role"], message["content"]) for message in record["messages"]]
    else:
        fields = ("prompt", *PAIRED)
        parts = [(field, " ".join(m["content"] for m in record[field])) for field in fields]
    shown = [f"  {name}: {shorten(' '.join(text.split()), SAMPLE_CHARACTERS)}" for name, text in parts[:6]]
    return [f"sample {record['id']}", *shown]
