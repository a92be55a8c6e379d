"""Conversations and preference pairs: checked, counted, split into train and held-out test."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from stages.contract.params import Source
from stages.corpus.records import read_records

TEST_SHARE = 0.1  # of the records that do not say which split they belong to
ROLES = ("system", "user", "assistant")


class Examples(NamedTuple):
    """``train`` and ``test`` in file order, each with its ``id`` and ``file``; ``set_aside`` counts what is unusable,
    by reason; ``mixture``: see `stages.corpus.mixture`."""

    train: list[dict[str, Any]]
    test: list[dict[str, Any]]
    set_aside: dict[str, int]
    mixture: dict[str, dict[str, float]] | None = None


def read_conversations(source: Source) -> Examples:
    """Records with ``messages``: a list of {role, content} that ends in an assistant's turn.

    Raises:
        UserError: as `read_records`.
    """
    return _read(source, _conversation_problem, lambda value: {"messages": _messages(value["messages"])})


def read_preferences(source: Source) -> Examples:
    """Records with ``prompt``, ``chosen`` and ``rejected``: lists of messages, or plain strings, which become
    one user's and one assistant's turn.

    Raises:
        UserError: as `read_records`.
    """
    return _read(source, _pair_problem, _pair)


def _read(source: Source, problem: Callable[[dict], str], usable: Callable[[dict], dict]) -> Examples:
    records, rejected = read_records(source)
    reasons = Counter(entry.reason for entry in rejected)
    split: dict[str, list] = {"train": [], "test": []}
    for record in records:
        reason = problem(record.value)
        if reason:
            reasons[reason] += 1
            continue
        name = record.value.get("id")
        name = str(name) if name and isinstance(name, str | int | float) else f"{record.file}:{record.line}"
        part = _split(name, record.value.get("split"))
        if part:
            split[part].append({"id": name, "file": record.file} | usable(record.value))
        else:
            reasons["unknown split"] += 1
    held_out = {_opening(example) for example in split["test"]}
    train = [example for example in split["train"] if _opening(example) not in held_out]
    if len(train) < len(split["train"]):
        reasons["prompt is held out"] = len(split["train"]) - len(train)
    return Examples(train, split["test"], dict(sorted(reasons.items())))


def _opening(example: dict) -> str:
    """What stands before the first answer: with it in both splits, the held-out figures would be flattered."""
    messages = example.get("prompt") or example["messages"]
    first = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    return json.dumps(messages[:first])


def _split(name: str, stated: Any) -> str:
    """train or test, also of names like train_sft and validation; "" for a name that says neither."""
    if stated is not None:
        word = stated.lower() if isinstance(stated, str) else ""
        held_out = word.startswith(("test", "val", "eval", "dev"))
        return "test" if held_out else "train" if word.startswith("train") else ""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    return "test" if share < TEST_SHARE else "train"


def _conversation_problem(value: dict) -> str:
    messages = value.get("messages")
    if messages is None:
        return "no messages"
    if problem := _messages_problem(messages):
        return problem
    return "" if messages[-1]["role"] == "assistant" else "no assistant turn at the end"


def _pair_problem(value: dict) -> str:
    for field in ("prompt", "chosen", "rejected"):
        if field not in value:
            return f"no {field}"
        if isinstance(value[field], str):
            if not value[field].strip():
                return f"{field}: empty turn"
        elif problem := _messages_problem(value[field]):
            return f"{field}: {problem}"
    pair = _pair(value)
    if pair["prompt"][-1]["role"] != "user":
        return "prompt: does not end in a user's turn"
    if any(message["role"] != "assistant" for side in ("chosen", "rejected") for message in pair[side][-1:]):
        return "chosen or rejected: no assistant turn"
    return "chosen and rejected are the same" if pair["chosen"] == pair["rejected"] else ""


def _pair(value: dict) -> dict[str, list]:
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    sides = {
        field: [{"role": role, "content": value[field]}] if isinstance(value[field], str) else _messages(value[field])
        for field, role in roles.items()
    }
    # Some sets repeat the prompt at the head of both answers.
    n = len(sides["prompt"])
    for field in ("chosen", "rejected"):
        if len(sides[field]) > n and sides[field][:n] == sides["prompt"]:
            sides[field] = sides[field][n:]
    return sides


def _messages_problem(messages: Any) -> str:
    if not isinstance(messages, list) or not messages:
        return "messages are not a list of turns"
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            return "a turn without text"
        if message.get("role") not in ROLES:
            return "unknown role"
        if not message["content"].strip():
            return "empty turn"
    return ""


def _messages(messages: list[dict]) -> list[dict[str, str]]:
    return [{"role": message["role"], "content": message["content"]} for message in messages]
