"""Write the other files of the report: CSV for plots, JSON lines for every example and answer."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.evaluation.measuring.measured import Answer


def write_bits(path: Path, bits: dict[str, dict[str, float]]) -> None:
    """Write CSV: model, domain, bits_per_byte."""
    _write_csv(
        path,
        ("model", "domain", "bits_per_byte"),
        [(name, domain, f"{value:.6f}") for name, domains in bits.items() for domain, value in domains.items()],
    )


def write_models(path: Path, folders: dict[str, str], metrics: dict[str, Any]) -> None:
    """Write JSON: the folder of each model, and its figures as MLflow shows them beside the model."""
    losses, preferences = metrics["assistant_loss"], metrics["preferences"]
    figures = {}
    for name, folder in folders.items():
        figures[folder] = {"bits_per_byte": metrics["bits_per_byte"][name]["overall"]}
        if isinstance(losses, dict):
            figures[folder]["assistant_loss"] = losses[name]["nats_per_token"]
        if isinstance(preferences, dict):
            figures[folder]["preference_accuracy"] = preferences[name]["accuracy"]
    path.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_preferences(path: Path, figures: dict[str, Any] | str) -> None:
    """Write CSV: model, measure (sum or per_token), accuracy, stderr; only its header if nothing was measured."""
    rows = []
    for name, values in figures.items() if isinstance(figures, dict) else ():
        if isinstance(values, dict) and "per_token_accuracy" in values:
            rows.append((name, "sum", f"{values['accuracy']:.6f}", f"{values['stderr']:.6f}"))
            rows.append((name, "per_token", f"{values['per_token_accuracy']:.6f}", f"{values['per_token_stderr']:.6f}"))
    _write_csv(path, ("model", "measure", "accuracy", "stderr"), rows)


def write_samples(path: Path, answers: dict[str, list[Answer]]) -> None:
    """Write JSON lines: the messages of a prompt, and by model its greedy answer and whether it ended by itself."""
    rows = zip(*answers.values(), strict=True)
    _write_jsonl(
        path,
        (
            {"messages": row[0].messages}
            | {name: {"answer": of.text, "ended": of.ended} for name, of in zip(answers, row, strict=True)}
            for row in rows
        ),
    )


def write_examples(path: Path, examples: dict[str, list[dict[str, Any]]]) -> None:
    """Write JSON lines: model, task, id and the example's metrics."""
    _write_jsonl(path, ({"model": name, **row} for name, rows in examples.items() for row in rows))


def write_document_scores(path: Path, texts: list[dict[str, str]], nats: dict[str, np.ndarray]) -> None:
    """Write JSON lines: source and bytes of each held-out document, and - log p of each model in nats."""
    sizes = [len(text["text"].encode("utf-8")) for text in texts]
    rows = zip(texts, sizes, _per_example(nats), strict=True)
    _write_jsonl(path, ({"source": text["source"], "bytes": size} | scores for text, size, scores in rows))


def write_conversations(path: Path, scores: dict[str, np.ndarray | None]) -> None:
    """Write JSON lines: the assistant's tokens of each held-out conversation, and their - log p by each model in nats.

    Args:
        scores: by model, nats and tokens, shape (conversations, 2); None without conversations.
    """
    measured = {name: values for name, values in scores.items() if values is not None}
    nats = _per_example({name: values[:, 0] for name, values in measured.items()})
    tokens = [int(count) for values in [*measured.values()][:1] for count in values[:, 1]]
    _write_jsonl(path, ({"tokens": count} | row for count, row in zip(tokens, nats, strict=True)))


def _per_example(scores: dict[str, np.ndarray]) -> list[dict[str, float]]:
    return [{name: round(float(x), 4) for name, x in zip(scores, row, strict=True)}
            for row in zip(*scores.values(), strict=True)]  # fmt: skip


def write_pairs(path: Path, pairs: list[dict[str, Any]], problems: list[str], logprobs: dict[str, np.ndarray]) -> None:
    """Write JSON lines: id, and for each model the log-probability of the chosen and the rejected answer in nats.

    Args:
        problems: of each pair, why it is dropped; its line has that instead. "": it is not.
        logprobs: by model, of the pairs without a problem.
    """
    measured = ({name: [round(float(x), 4) for x in pair] for name, pair in zip(logprobs, both, strict=True)}
                for both in zip(*logprobs.values(), strict=True))  # fmt: skip
    rows = zip(pairs, problems, strict=True)
    _write_jsonl(path, ({"id": pair["id"]} | ({"dropped": why} if why else next(measured)) for pair, why in rows))


def _write_csv(path: Path, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
