"""Drop conversations and preference pairs that give an evaluation away."""

from collections.abc import Callable

from stages.contract.params import Mixture, Params, Source
from stages.corpus.chats.conversations import Examples
from stages.corpus.chats.mixture import weighted
from stages.corpus.filtering.contamination import NgramIndex, index, ngram_overlap, passages
from stages.corpus.reading.records import ReadAgain, read_records
from stages.corpus.text.arrays import strings
from stages.corpus.text.words import texts


def to_train_on(
    source: Mixture, read: Callable[[Source], Examples], params: Params, read_evals: ReadAgain | None = None
) -> Examples:
    """Read ``source`` with ``read``, drop leaks (`without_evaluations`), and apply weights (`weighted`).

    Args:
        read_evals: returns the records of data.evals; None: `read_records`.

    Raises:
        UserError: as ``read`` and `weighted`, or nothing is left to train on.
    """
    limits, examples = params.filter, read(source)
    evals, _ = read_evals() if read_evals else read_records(params.data.evals)
    held_out = index([list(passages(record.value)) for record in evals], limits.decontamination_ngram)
    examples = weighted(without_evaluations(examples, held_out, limits.max_contamination), source)
    examples.refuse_nothing(source.path)
    return examples


def without_evaluations(examples: Examples, held_out: NgramIndex, high: float) -> Examples:
    """Drop training records that overlap with an evaluation record by more than ``high``.

    See `stages.corpus.filtering.contamination`.
    """
    if not examples.train:
        return examples
    contents = [{key: value for key, value in example.items() if key != "file"} for example in examples.train]
    column = texts(strings(["\n".join(passages(content)) for content in contents]))
    leaks = ngram_overlap(column, held_out).documents > high
    kept = [example for example, leak in zip(examples.train, leaks, strict=True) if not leak]
    return examples.without("gives an evaluation away", int(leaks.sum()))._replace(train=kept)
