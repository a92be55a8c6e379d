"""DVC stage `check`: the records that later stages read, validated before anything trains.

Each source is read by the readers of the stages that use it, in any known form, and accounted for. Wrong data stops
here and not after an hour of training; all sources with a problem are named at once. `dedup`, and so every stage after
it, waits for out/check. Its content never changes, so a change of the data for sft does not train the base model again.
`dedup` counts the documents of data.pretrain: here only the names of their fields are recognized.

The model in `init` is checked, too: its configuration, weights, tokenizer and chat template.

Reads  init, data.sft, data.preferences, data.evals, data.validation, data.quality, data.pretrain.
Writes out/check/      passed.json: the same whatever the data
       reports/check/  metrics.json; overview.txt: form, turns, lengths, repeated prompts and samples of each source
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from stages.contract import Run, UserError, run_stage
from stages.contract.accounting import Account
from stages.contract.params import Mixture, Params, Source
from stages.corpus.chats.conversations import Examples, read_conversations, read_preferences
from stages.corpus.chats.recognition import describe_forms
from stages.corpus.reading.records import ReadAgain, read_records
from stages.corpus.reading.sources import source_files

FIRST_FILES = 20  # of a source of documents, whose fields are looked at
EARLY_BYTES = 2**24  # of a source's files; these are read in two seconds


class Finding(NamedTuple):
    """A source's form and count in one ``line``, its ``account``, and ``details`` for the overview."""

    line: str
    account: Account | None
    details: list[str]


def main(run: Run) -> None:
    """Read every source of the later stages, and account for its records."""
    overview: list[str] = []
    problems: list[str] = []
    evals = cache(partial(read_records, run.params.data.evals))  # read once for three sources
    examples = [partial(_examples, *each, evals) for each in _examples_of(run.params)]
    looks: list[Callable[[Params], list[Finding]]] = [_initial, *examples, partial(_evals, evals)]
    for look in (*looks, _validation, _quality, _pretrain):
        try:
            for line, account, details in look(run.params):
                print(line, flush=True)
                overview += [line, *([account.line()] if account else []), *(f"  {each}" for each in details), ""]
                if account:
                    run.account(account, run.params.max_rejected)
        except UserError as e:
            problems += str(e).splitlines()
    (run.reports / "overview.txt").write_text("\n".join(overview), encoding="utf-8")
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    (run.out / "passed.json").write_text('{"passed": true}\n', encoding="utf-8")
    run.report({})


def refuse_wrong_examples(params: Params) -> None:
    """Refuse conversations and pairs that `check` would, before it can run: flows wait for Prefect's server first.

    Nothing here needs compiled kernels, so leaks are not looked for. A source above EARLY_BYTES is left to the stage.

    Raises:
        UserError: a source holds nothing to train on, or too many of its records are rejected; a line a source.
    """
    from stages.corpus.chats.mixture import weighted

    problems = []
    for source, read, name, unit in _examples_of(params):
        try:
            if sum(path.stat().st_size for path, _ in source_files(source)) > EARLY_BYTES:
                continue
            examples = weighted(read(source), source)
            examples.refuse_nothing(source.path)
            examples.account(name, unit).check(params.max_rejected)
        except UserError as e:
            problems.append(str(e))
    if problems:
        raise UserError("\n".join(problems))


def check_initial(folder: Path, row_tokens: int) -> str:
    """Check the model in ``folder`` whose training is to be continued; return a line about it, or "" for none.

    Raises:
        UserError: its training cannot be continued with rows of ``row_tokens``.
    """
    from stages.corpus.chats.turns import turn_end
    from stages.corpus.tokens.adoption import adopt, holds_model
    from stages.scaling.configs import given_shape
    from stages.trainer.model.weights import check_weights

    if not holds_model(folder):
        return ""
    if (folder / "config.json").exists():
        given_shape(folder, row_tokens)
        check_weights(folder)
    tokenizer, line = adopt(folder)
    turn_end(tokenizer)
    return line


def _initial(params: Params) -> list[Finding]:
    line = check_initial(Path(params.init), params.pack.row_tokens)
    return [Finding(line, None, [])] if line else []


def _examples_of(params: Params) -> list[tuple[Mixture, Callable[[Source], Examples], str, str]]:
    """Return each source of examples, its reader, its key in params.yaml, and the plural of its records."""
    return [
        (params.data.sft, read_conversations, "data.sft", "conversations"),
        (params.data.preferences, read_preferences, "data.preferences", "pairs"),
    ]


def _examples(
    source: Mixture, read: Callable[[Source], Examples], name: str, unit: str, evals: ReadAgain, params: Params
) -> list[Finding]:  # fmt: skip
    from stages.corpus.chats.leaks import to_train_on
    from stages.corpus.chats.overview import describe_examples

    examples = to_train_on(source, read, params, evals)
    details = describe_examples(examples, params.pack.row_tokens, params.tokenizer.vocab_size)
    return [Finding(describe_forms(name, examples.forms, unit), examples.account(name, unit), details)]


def _evals(evals: ReadAgain, params: Params) -> list[Finding]:
    from stages.evaluation.measuring.evaluations import read_evaluations
    from stages.evaluation.measuring.examples import tasks

    found = read_evaluations(params.data.evals, evals)
    asked = tasks(found.values, limit=None, context=None)
    details = [f"{task}: {len(rows):,} of format {rows[0].format}" for task, rows in sorted(asked.found.items())]
    details += [f"{task}: not run: {reason}" for task, reason in sorted(asked.not_run.items())]
    account = replace(asked.account(found.rejected), hint=found.hint)
    return [Finding(describe_forms("data.evals", found.forms, "records"), account, details)]


def _validation(params: Params) -> list[Finding]:
    from stages.corpus.reading.documents import read_documents, text_names
    from stages.corpus.reading.rejections import account_of

    source, corpus = params.data.validation, read_documents(params.data.validation)
    account = account_of("data.validation", "documents", len(corpus.table), corpus.rejected)
    sources = Counter(corpus.table["source"].to_pylist()).most_common(10)
    details = [f"{name}: {count:,} documents" for name, count in sources]
    names = ", ".join(text_names(source_files(source)[:FIRST_FILES], source.fields))
    return [Finding(f"data.validation: {names}, {account.read:,} documents", account, details)]


def _quality(params: Params) -> list[Finding]:
    from stages.corpus.filtering.quality import find_seeds
    from stages.corpus.reading.rejections import account_of

    seeds = find_seeds(params.data.quality, params.filter.min_quality)
    if not seeds:
        return []
    account = account_of("data.quality", "texts", seeds.read - len(seeds.rejected), seeds.rejected)
    return [Finding(f"data.quality: text and label, {account.read:,} texts", account, [])]


def _pretrain(params: Params) -> list[Finding]:
    from stages.corpus.reading.documents import text_names

    files = source_files(params.data.pretrain)
    names = text_names(files[:FIRST_FILES], params.data.pretrain.fields)
    shown = ", ".join(names) or "no text among the first records"
    size = sum(path.stat().st_size for path, _ in files) / 1e6
    count = f"{len(files):,} file{'s' * (len(files) != 1)}"
    return [Finding(f"data.pretrain: {shown}, {size:,.1f} MB in {count}; dedup counts the documents", None, [])]


if __name__ == "__main__":
    run_stage("check", main)
