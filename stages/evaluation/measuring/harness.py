"""Tasks of the evals file through lm-evaluation-harness (arXiv:2405.14782): local, zero-shot, in memory.

Formats and metrics, each a mean with its closed-form standard error:

    mc     query, choices[], gold      acc: the choice with the highest log-probability; acc_norm: per character
    cloze  query, target               acc: the target is what greedy decoding gives; nats: - log p(target | query)
    gen    query, target, aliases[]    exact_match of the first line generated, apart from case and punctuation

`stages.evaluation.measuring.examples.Example.continuations` says how query and answer are joined.
"""

import contextlib
import copy
import io
import logging
import string
import unicodedata
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from stages.evaluation.measuring.examples import Example

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ANSWER_TOKENS = 16
BATCH = 32


def chance(rows: list[Example]) -> float | None:
    """Accuracy of guessing, for multiple choice."""
    return sum(1 / len(row.choices) for row in rows) / len(rows) if rows[0].format == "mc" else None


def evaluate(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prefix: int, found: dict[str, list[Example]]
) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    """Run every task of ``found`` (of `stages.evaluation.measuring.examples.Tasks`) on a model.

    Args:
        prefix: the token id an empty context is replaced by.

    Returns:
        {task: {"examples": n, metric: mean, metric_stderr: standard error}} and one flat record an example:
        task, id, its metrics and, for gen, the answer.
    """
    if not found:
        return {}, []
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    plain = copy.copy(tokenizer)
    plain.split_special_tokens = True  # a special token's name in a question is text
    # lm-eval looks names up and takes some for patterns, so it gets names of ours.
    names = {f"task_{i}": name for i, name in enumerate(found)}
    with _quiet():
        configs = [_config(own, found[name], model) for own, name in names.items()]
        loaded = TaskManager(include_defaults=False).load(configs)
        lm = HFLM(pretrained=model, tokenizer=plain, batch_size=BATCH, prefix_token_id=prefix)
        # At bootstrap_iters=0 lm-eval leaves out standard errors; a mean's has a closed form, so nothing is drawn.
        output = evaluate(lm=lm, task_dict=loaded, bootstrap_iters=1, log_samples=True)
    results = {name: _numbers(output["results"][own]) | {"examples": len(found[name])} for own, name in names.items()}
    samples = [_sample(name, s) for own, name in names.items() for s in output["samples"][own]]
    return results, samples


def _config(name: str, rows: list[Example], model: "PreTrainedModel") -> dict[str, Any]:
    """lm-eval's task configuration. Rows are passed in memory: loading files would copy them to the user's cache."""
    common = {
        "task": name,
        "custom_dataset": partial(_dataset, rows),
        "test_split": "test",
        "doc_to_text": "query",
        "num_fewshot": 0,
        "metadata": {"version": 1.0},
    }
    config = common | _FORMATS[rows[0].format]
    if config["output_type"] == "generate_until":
        answer = min(ANSWER_TOKENS, model.config.max_position_embeddings // 2)
        config["generation_kwargs"] = {"until": ["\n"], "max_gen_toks": answer, "do_sample": False}
    return config


def _mean(metric: str, higher_is_better: bool = True) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": higher_is_better}


def _choice_results(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """As lm-eval's own, but for the white space before a choice, which does not count as characters."""
    scores = [log_likelihood for log_likelihood, _ in results]
    each = [score / length for score, length in zip(scores, doc["lengths"], strict=True)]
    right = {"acc": scores, "acc_norm": each}
    return {name: float(values.index(max(values)) == doc["gold"]) for name, values in right.items()}


def _cloze_results(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    ((log_likelihood, greedy),) = results
    return {"acc": float(greedy), "nats": -float(log_likelihood)}


def _gen_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    answer = normalize(results[0])
    return {"exact_match": float(any(answer == normalize(t) for t in [doc["target"], *doc["aliases"]]))}


def normalize(answer: str) -> str:
    """Lower case and composed (NFC), without punctuation, runs of spaces or anything after the first line."""
    first = unicodedata.normalize("NFC", answer.strip().split("\n", 1)[0].lower())
    return " ".join(first.translate(str.maketrans("", "", string.punctuation)).split())


_FORMATS: dict[str, dict[str, Any]] = {
    "mc": {
        "output_type": "multiple_choice",
        "doc_to_choice": "continuations",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "process_results": _choice_results,
        "metric_list": [_mean("acc"), _mean("acc_norm")],
    },
    "cloze": {
        "output_type": "loglikelihood",
        "doc_to_target": "continuation",
        "process_results": _cloze_results,
        "metric_list": [_mean("acc"), _mean("nats", higher_is_better=False)],
    },
    "gen": {
        "output_type": "generate_until",
        "doc_to_target": "target",
        "process_results": _gen_results,
        "metric_list": [_mean("exact_match")],
    },
}


def _dataset(rows: list[Example], **metadata: Any) -> "dict[str, Dataset]":
    from datasets import Dataset

    return {"test": Dataset.from_list([_document(row) for row in rows])}


def _document(row: Example) -> dict[str, Any]:
    """Return an example as lm-eval reads it; values of a field are of one type in all rows."""
    document: dict[str, Any] = {"id": row.id, "query": row.query}
    if row.format == "mc":
        lengths = [len(choice.lstrip()) for choice in row.choices]
        return document | {"continuations": row.continuations, "gold": row.gold, "lengths": lengths}
    if row.format == "cloze":
        return document | {"continuation": row.continuations[0]}
    return document | {"target": row.target, "aliases": list(row.aliases)}


def _numbers(result: dict[str, Any]) -> dict[str, float]:
    """Return {"acc": x, "acc_stderr": s} of {"acc,none": x, "acc_stderr,none": s, "alias": name}."""
    named = {key.split(",")[0]: value for key, value in result.items() if "," in key}
    # A single example has no standard error: lm-eval gives "N/A" or nan.
    return {key: float(v) for key, v in named.items() if not isinstance(v, str) and v == v}


def _sample(name: str, sample: dict[str, Any]) -> dict[str, Any]:
    record = {"task": name, "id": sample["doc"]["id"] or str(sample["doc_id"])}
    record |= {metric: float(sample[metric]) for metric in sample["metrics"]}
    if "exact_match" in record:
        record["answer"] = sample["filtered_resps"][0]
    return record


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval's progress bars and hints go nowhere; errors still rise."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with contextlib.redirect_stderr(io.StringIO()):
        yield
