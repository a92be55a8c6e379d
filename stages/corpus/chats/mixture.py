"""Apply mixture weights: how often the training records of a file are taken."""

import hashlib
import json
from fnmatch import fnmatchcase
from typing import Any

from stages.contract.errors import UserError
from stages.contract.params import Mixture
from stages.corpus.chats.conversations import Examples
from stages.corpus.filtering.domains import copies
from stages.corpus.reading.sources import source_files


def weighted(examples: Examples, source: Mixture) -> Examples:
    """Return ``examples`` with each training record as often as ``source.weights`` says, copies side by side.

    ``mixture``: pattern -> its weight, the training records in the files that match it, and how many were taken.

    Raises:
        UserError: a pattern matches no file, or a file has two weights.
    """
    if not source.weights:
        return examples
    patterns = _by_file(source)
    places: dict[str, list[int]] = {pattern: [] for pattern in source.weights}
    for i, example in enumerate(examples.train):
        if example["file"] in patterns:
            places[patterns[example["file"]]].append(i)
    often, mixture = [1] * len(examples.train), {}
    for pattern, at in sorted(places.items()):
        weight = source.weights[pattern]
        for i, count in zip(at, copies([_digest(examples.train[i]) for i in at], weight), strict=True):
            often[i] = count
        mixture[pattern] = {"weight": weight, "records": len(at), "taken": sum(often[i] for i in at)}
    train = [example for example, count in zip(examples.train, often, strict=True) for _ in range(count)]
    return examples.without("not taken by weights", often.count(0))._replace(train=train, mixture=mixture)


def _by_file(source: Mixture) -> dict[str, str]:
    """Return the pattern of every file that has a weight."""
    files = [name for _, name in source_files(source)]
    matches = {pattern: [name for name in files if fnmatchcase(name, pattern)] for pattern in source.weights}
    for pattern, names in matches.items():
        if not names:
            raise UserError(
                f"{source.path}: weights: {pattern!r} matches no file. There are: {', '.join(files)}. Change the "
                "pattern in params.yaml; * matches / too."
            )
    by_file = {}
    for name in files:
        own = [pattern for pattern, names in matches.items() if name in names]
        if len(own) > 1:
            raise UserError(f"{source.path}: weights: {name} matches {own[0]!r} and {own[1]!r}; it can have one.")
        if own:
            by_file[name] = own[0]
    return by_file


def _digest(example: dict[str, Any]) -> bytes:
    """Return the digest of an example's content, wherever it comes from."""
    content = {key: value for key, value in example.items() if key not in ("id", "file")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
