"""Mixture weights: how often the records of some files are trained on."""

import hashlib
import json
from fnmatch import fnmatchcase

from stages.contract.errors import UserError
from stages.contract.params import Mixture
from stages.corpus.conversations import Examples
from stages.corpus.records import source_files
from stages.corpus.sampling import copies


def weighted(examples: Examples, source: Mixture) -> Examples:
    """``examples`` with those of train as often as ``source.weights`` says; copies stand behind each other.

    ``mixture``: pattern -> its weight, the records there are to train on in the files it matches, and how many were
    taken of them.

    Raises:
        UserError: a pattern matches no file, or a file has two weights.
    """
    if not source.weights:
        return examples
    patterns = _by_file(source)
    places = {pattern: [] for pattern in source.weights}
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
    return examples._replace(train=train, mixture=mixture)


def _by_file(source: Mixture) -> dict[str, str]:
    """The pattern of every file that has a weight."""
    files = [name for _, name in source_files(source)]
    matches = {pattern: [name for name in files if fnmatchcase(name, pattern)] for pattern in source.weights}
    for pattern, names in matches.items():
        if not names:
            raise UserError(
                f"{source.path}: weights: {pattern!r} matches no file. There are: {', '.join(files)}. Change the "
                "pattern in params.yaml; * matches / too."
            )
    found = {}
    for name in files:
        own = [pattern for pattern, names in matches.items() if name in names]
        if len(own) > 1:
            raise UserError(f"{source.path}: weights: {name} matches {own[0]!r} and {own[1]!r}; it can have one.")
        if own:
            found[name] = own[0]
    return found


def _digest(example: dict) -> bytes:
    """Of what an example says, wherever it stands."""
    said = {key: value for key, value in example.items() if key not in ("id", "file")}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).digest()
