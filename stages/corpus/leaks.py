"""Conversations and preference pairs to train on must not give an evaluation away."""

from collections.abc import Callable

from stages.contract import UserError
from stages.contract.params import Mixture, Params, Source
from stages.corpus.arrays import strings
from stages.corpus.contamination import index, overlap, passages
from stages.corpus.conversations import Examples
from stages.corpus.mixture import weighted
from stages.corpus.records import read_records
from stages.corpus.words import texts


def to_train_on(what: str, source: Mixture, read: Callable[[Source], Examples], params: Params) -> Examples:
    """What ``read`` finds in ``source``, :func:`without_evaluations` and then `weighted`; ``what`` says what it is, in
    an error.

    Raises:
        UserError: as ``read`` and `weighted`, or nothing is left to train on.
    """
    limits = params.filter
    examples = without_evaluations(
        read(source), params.data.evals, limits.decontamination_ngram, limits.max_contamination
    )
    examples = weighted(examples, source)
    if not examples.train:
        raise UserError(f"{source.path} holds no {what} to train on: {examples.mixture or examples.set_aside}")
    return examples


def without_evaluations(examples: Examples, evals: Source, ngram: int, high: float) -> Examples:
    """Without the examples to train on that overlap with an evaluation record by more than ``high``: see
    `stages.corpus.contamination`."""
    if not examples.train:
        return examples
    records, _ = read_records(evals)
    held_out = index([list(passages(record.value)) for record in records], ngram)
    said = [{key: value for key, value in example.items() if key != "file"} for example in examples.train]
    column = texts(strings(["\n".join(passages(example)) for example in said]))
    leaks = overlap(column, held_out).documents > high
    kept = [example for example, leak in zip(examples.train, leaks, strict=True) if not leak]
    reasons = examples.set_aside | ({"gives an evaluation away": int(leaks.sum())} if leaks.any() else {})
    return examples._replace(train=kept, set_aside=dict(sorted(reasons.items())))
