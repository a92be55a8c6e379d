"""Files beside the metrics: CSV for plots, JSON lines for every example, a page of answers."""

import csv
import html
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np


def write_bits(path: Path, bits: dict[str, dict[str, float]]) -> None:
    """CSV: model, domain, bits_per_byte."""
    _write_csv(
        path,
        ("model", "domain", "bits_per_byte"),
        [(name, domain, f"{value:.6f}") for name, domains in bits.items() for domain, value in domains.items()],
    )


def write_preferences(path: Path, found: dict | str) -> None:
    """CSV: model, measure (sum or per_token), accuracy, stderr; only its header if nothing was measured."""
    rows = []
    for name, values in found.items() if isinstance(found, dict) else ():
        if isinstance(values, dict) and "per_token_accuracy" in values:
            rows.append((name, "sum", f"{values['accuracy']:.6f}", f"{values['stderr']:.6f}"))
            rows.append((name, "per_token", f"{values['per_token_accuracy']:.6f}", f"{values['per_token_stderr']:.6f}"))
    _write_csv(path, ("model", "measure", "accuracy", "stderr"), rows)


def write_samples(path: Path, answers: dict[str, list[dict]]) -> None:
    """JSON lines: prompt, and each model's greedy answer."""
    names = list(answers)
    rows = zip(*answers.values(), strict=True)
    _write_jsonl(path, ({"prompt": row[0]["prompt"], **_by_name(names, row, "answer")} for row in rows))


def write_samples_page(path: Path, answers: dict[str, list[dict]]) -> None:
    """HTML: a row for each prompt, a column for each model's greedy answer, green where it ended by itself."""
    title = "Greedy answers to the same held-out prompts; green: the model ended its turn by itself"
    style = (
        "table{border-collapse:collapse;table-layout:fixed;width:100%}td,th{border:1px solid;padding:.5em;"
        "vertical-align:top;white-space:pre-wrap;overflow-wrap:anywhere;text-align:left}td.stopped{background:#b6f0b6}"
    )
    rows = ["".join(f"<th>{name}</th>" for name in ("prompt", *answers))]
    for row in zip(*answers.values(), strict=True):
        cells = [f"<td>{html.escape(row[0]['prompt'])}</td>"]
        for found in row:
            kind = " class=stopped" if found["stopped"] else ""
            cells.append(f"<td{kind}>{html.escape(found['answer'])}</td>")
        rows.append("".join(cells))
    table = "\n".join(f"<tr>{row}</tr>" for row in rows)
    head = f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{style}</style><p>{title}.</p>"
    path.write_text(f"{head}\n<table>\n{table}\n</table>\n", encoding="utf-8")


def write_examples(path: Path, examples: dict[str, list[dict]]) -> None:
    """JSON lines: model, task, id and the example's metrics."""
    _write_jsonl(path, ({"model": name, **row} for name, rows in examples.items() for row in rows))


def write_pairs(path: Path, pairs: list[dict], logprobs: dict[str, np.ndarray]) -> None:
    """JSON lines: id, and for each model the log-probability of the chosen and the rejected answer in nats."""
    _write_jsonl(
        path,
        (
            {"id": pair["id"], **{name: [round(float(x), 4) for x in values[i]] for name, values in logprobs.items()}}
            for i, pair in enumerate(pairs)
        ),
    )


def _by_name(names: list[str], row: Iterable[dict], key: str) -> dict:
    return {name: value[key] for name, value in zip(names, row, strict=True)}


def _write_csv(path: Path, header: tuple, rows: list[tuple]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
