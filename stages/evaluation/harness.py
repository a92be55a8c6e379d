"""Tasks of the evals file through lm-evaluation-harness (arXiv:2405.14782): local, zero-shot, in memory.

Formats and metrics, each a mean with its closed-form standard error:

    mc     query, choices[], gold      acc: the choice with the highest log-probability; acc_norm: per character
    cloze  query, target               acc: the target is what greedy decoding gives; nats: - log p(target | query)
    gen    query, target, aliases[]    exact_match of the first line generated, apart from case and punctuation
"""

import contextlib
import io
import logging
import string
from collections.abc import Iterable
from functools import partial

from stages.evaluation.choice import spread

NOT_RUN = {
    "code": "would run code that the model writes",
    "minpair": "format not supported here",
    "schema": "format not supported here",
    "mc_multi": "format not supported here",
}
ANSWER_TOKENS = 16
BATCH = 32


def tasks(records: Iterable[dict], limit: int | None, context: int) -> tuple[dict[str, list[dict]], dict[str, str]]:
    """Records by task name, and the reason of each task or record that is left out.

    Args:
        limit: examples of a task, spread evenly over its records; None: all.
        context: of the models, in tokens. An answer of more bytes might not fit and is left out.
    """
    found: dict[str, list[dict]] = {}
    skipped: dict[str, str] = {}
    malformed: dict[str, int] = {}
    for record in records:
        name, kind = str(record.get("task")), record.get("format")
        if kind not in _CHECKS:
            skipped[name] = NOT_RUN.get(kind, f"unknown format {kind!r}")
        elif not _CHECKS[kind](record) or _answer_bytes(record) >= context:
            malformed[name] = malformed.get(name, 0) + 1
        else:
            found.setdefault(name, []).append(record)
    skipped |= {
        name: f"records without the fields of their format, or with answers beyond the context: {n}"
        for name, n in malformed.items()
    }
    for name, rows in found.items():
        found[name] = spread([r for r in rows if r["format"] == rows[0]["format"]], limit)
    return found, skipped


def chance(rows: list[dict]) -> float | None:
    """Accuracy of guessing, for multiple choice."""
    return sum(1 / len(r["choices"]) for r in rows) / len(rows) if rows[0]["format"] == "mc" else None


def evaluate(model, tokenizer, prefix: int, found: dict[str, list[dict]]) -> tuple[dict, list[dict]]:
    """Run every task of ``found`` (from :func:`tasks`) on a model.

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

    with _quiet():
        loaded = TaskManager(include_defaults=False).load([_config(name, rows, model) for name, rows in found.items()])
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH, prefix_token_id=prefix)
        # At bootstrap_iters=0 lm-eval leaves out standard errors; a mean's has a closed form, so nothing is drawn.
        output = evaluate(lm=lm, task_dict=loaded, bootstrap_iters=1, log_samples=True)
    results = {name: _numbers(output["results"][name]) | {"examples": len(found[name])} for name in found}
    samples = [_sample(name, s) for name in found for s in output["samples"][name]]
    return results, samples


def _config(name: str, rows: list[dict], model) -> dict:
    """lm-eval's task configuration. Rows are passed in memory: loading files would copy them to the user's cache."""
    common = {
        "task": name,
        "custom_dataset": partial(_dataset, rows),
        "test_split": "test",
        "doc_to_text": "query",
        "num_fewshot": 0,
        "metadata": {"version": 1.0},
    }
    config = common | _FORMATS[rows[0]["format"]]
    if config["output_type"] == "generate_until":
        answer = min(ANSWER_TOKENS, model.config.max_position_embeddings // 2)
        config["generation_kwargs"] = {"until": ["\n"], "max_gen_toks": answer, "do_sample": False}
    return config


def _mean(metric: str, higher_is_better: bool = True) -> dict:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": higher_is_better}


def _cloze_results(doc: dict, results: list) -> dict:
    ((log_likelihood, greedy),) = results
    return {"acc": float(greedy), "nats": -float(log_likelihood)}


def _gen_results(doc: dict, results: list) -> dict:
    answer = normalize(results[0])
    return {"exact_match": float(any(answer == normalize(t) for t in [doc["target"], *(doc.get("aliases") or [])]))}


def normalize(answer: str) -> str:
    """Lower case, without punctuation, runs of spaces or anything after the first line."""
    first = answer.strip().split("\n", 1)[0].lower()
    return " ".join(first.translate(str.maketrans("", "", string.punctuation)).split())


_FORMATS = {
    "mc": {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": " ",
        "metric_list": [_mean("acc"), _mean("acc_norm")],
    },
    "cloze": {
        "output_type": "loglikelihood",
        "doc_to_target": "target",
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


def _text(*fields: str):
    return lambda record: all(isinstance(record.get(f), str) and record[f].strip() for f in fields)


def _choices(record: dict) -> bool:
    choices, gold = record.get("choices"), record.get("gold")
    strings = isinstance(choices, list) and len(choices) > 1 and all(isinstance(c, str) and c for c in choices)
    return strings and isinstance(gold, int) and 0 <= gold < len(choices) and _text("query")(record)


def _answer_bytes(record: dict) -> int:
    return max(len(answer.encode("utf-8", "replace")) for answer in record.get("choices") or [record["target"]])


_CHECKS = {"mc": _choices, "cloze": _text("query", "target"), "gen": _text("query", "target")}
_FIELDS = ("id", "query", "choices", "gold", "target", "aliases")


def _dataset(rows: list[dict], **metadata) -> dict:
    from datasets import Dataset

    return {"test": Dataset.from_list([{k: r[k] for k in _FIELDS if k in r} for r in rows])}


def _numbers(result: dict) -> dict[str, float]:
    """{"acc,none": x, "acc_stderr,none": s, "alias": name} -> {"acc": x, "acc_stderr": s}"""
    named = {key.split(",")[0]: value for key, value in result.items() if "," in key}
    # A single example has no standard error: lm-eval gives "N/A" or nan.
    return {key: float(v) for key, v in named.items() if not isinstance(v, str) and v == v}


def _sample(name: str, sample: dict) -> dict:
    record = {"task": name, "id": str(sample["doc"].get("id", sample["doc_id"]))}
    record |= {metric: float(sample[metric]) for metric in sample["metrics"]}
    if "exact_match" in record:
        record["answer"] = sample["filtered_resps"][0]
    return record


@contextlib.contextmanager
def _quiet():
    """lm-eval's progress bars and hints go nowhere; errors still rise."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with contextlib.redirect_stderr(io.StringIO()):
        yield
