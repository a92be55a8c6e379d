"""Which held-out examples are measured when not all are: fixed by the data, not drawn."""

from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def spread(items: Sequence[T], limit: int | None) -> list[T]:
    """At most ``limit`` items (None: all), evenly spaced: files are often ordered by topic or source."""
    count = min(len(items), len(items) if limit is None else limit)
    return [items[i * len(items) // count] for i in range(count)]


def share(documents: Sequence[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    """At most ``limit`` bytes of text, an equal share for each source, in the order of ``documents``.

    The document at the end of a share is cut there, at a character; a source short of its share leaves the rest
    unused. ``limit`` None: all. Documents without text are left out. Each has ``text`` and ``source``.
    """
    documents = [d for d in documents if d["text"]]
    if limit is None:
        return documents
    sources = {d["source"] for d in documents}
    room = dict.fromkeys(sources, limit // max(1, len(sources)))
    chosen = []
    for document in documents:
        whole = document["text"].encode("utf-8")
        part = whole[: room[document["source"]]].decode("utf-8", errors="ignore")
        room[document["source"]] = max(0, room[document["source"]] - len(whole))
        if part:
            chosen.append({**document, "text": part})
    return chosen
