"""Base, sft and dpo side by side on held-out text, tasks, conversations and preferences.

Reads  out/pretrain, out/sft, out/dpo; data.validation, data.evals, and the test part of data.sft and data.preferences;
       out/filter and out/pack for the n-gram baselines; out/size and the reports of dedup, filter and pack.
Writes out/eval/      tasks.jsonl, pairs.jsonl: every example's score
       reports/eval/  metrics.json, bits_per_byte.csv, preferences.csv, samples.jsonl, samples.html,
                      summary.txt, summary.md
"""

import json
from pathlib import Path

from stages.contract import Run, run_stage

MODELS = {"base": Path("out/pretrain"), "sft": Path("out/sft"), "dpo": Path("out/dpo")}
HEADLINE = (
    "bits_per_byte.byte_trigram.overall",
    "bits_per_byte.base.overall",
    "bits_per_byte.dpo.overall",
    "assistant_loss.base.nats_per_token",
    "assistant_loss.sft.nats_per_token",
    "preferences.sft.accuracy",
    "preferences.dpo.accuracy",
    "preferences.sft_to_dpo.stderr",
)
EARLIER = {
    "dedup": Path("reports/dedup/metrics.json"),
    "filter": Path("reports/filter/metrics.json"),
    "pack": Path("reports/pack/metrics.json"),
    "plan": Path("out/size/plan.json"),
}


def main(run: Run) -> None:
    from stages.evaluation import layout, summary
    from stages.evaluation.figures import figures

    wanted = run.params.eval
    data = _held_out(run)
    found = {name: _measure(run, name, folder, data) for name, folder in MODELS.items()}
    ngrams = _ngrams(wanted.ngram_symbols, data, found["base"])
    metrics = figures(data, found, ngrams, run.params.dpo.beta, wanted.new_tokens)
    run.report(metrics, HEADLINE)
    _write_tables(run, data, found, metrics)
    closing = summary.blocks(metrics, {n: json.loads(p.read_text()) for n, p in EARLIER.items() if p.exists()})
    (run.reports / "summary.md").write_text(layout.markdown(closing), encoding="utf-8")
    (run.reports / "summary.txt").write_text(layout.text(closing), encoding="utf-8")
    if not run.in_flow:  # which prints it last
        print("\n" + layout.text(closing), flush=True)


def _held_out(run: Run) -> dict:
    """``texts``, ``chats``, ``pairs`` and ``tasks``, and what is left out of them."""
    from stages.corpus.conversations import read_conversations, read_preferences
    from stages.corpus.documents import read_documents
    from stages.corpus.records import read_records
    from stages.evaluation import choice, harness

    wanted = run.params.eval
    texts = read_documents(run.params.data.validation).table.to_pylist()
    chats, pairs = read_conversations(run.params.data.sft), read_preferences(run.params.data.preferences)
    records, _ = read_records(run.params.data.evals)
    tasks, not_run = harness.tasks([record.value for record in records], wanted.limit, run.params.pack.row_tokens)
    return {
        "texts": choice.share(texts, wanted.validation_bytes),
        "chats": [c["messages"] for c in chats.test],
        "pairs": pairs.test,
        "tasks": tasks,
        "not_run": not_run,
        "set_aside": {"conversations": chats.set_aside, "preferences": pairs.set_aside},
    }


def _measure(run: Run, name: str, folder: Path, data: dict) -> dict:
    import torch

    from stages.evaluation.measure import measure
    from stages.trainer import models

    print(f"measuring {name}", flush=True)
    model, tokenizer = models.load(folder)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return measure(name, model, tokenizer, data, run.params.eval.prompts, run.params.eval.new_tokens)


def _ngrams(limit: int, data: dict, base: dict) -> dict:
    """- log p of each validation text under n-gram models of the training text."""
    from stages.corpus.packing import load_rows
    from stages.evaluation import baselines

    print("n-gram baselines", flush=True)
    rows, vocabulary = load_rows(Path("out/pack/train")), base["vocabulary"]
    keys, counts = baselines.byte_counts(Path("out/filter/documents.parquet"), limit)
    single, triple = baselines.byte_nats(keys, counts, [d["text"] for d in data["texts"]])
    keys, counts = baselines.token_counts(rows.tokens, rows.filled, vocabulary, limit)
    tokens = baselines.token_nats(keys, counts, vocabulary, base["documents"], base["prefix"])
    return {"byte_unigram": single, "byte_trigram": triple, "token_trigram": tokens}


def _write_tables(run: Run, data: dict, found: dict[str, dict], metrics: dict) -> None:
    from stages.evaluation import tables

    tables.write_bits(run.reports / "bits_per_byte.csv", metrics["bits_per_byte"])
    tables.write_preferences(run.reports / "preferences.csv", metrics["preferences"])
    answers = {name: f["answers"] for name, f in found.items()}
    tables.write_samples(run.reports / "samples.jsonl", answers)
    tables.write_samples_page(run.reports / "samples.html", answers)
    tables.write_examples(run.out / "tasks.jsonl", {name: f["examples"] for name, f in found.items()})
    tables.write_pairs(run.out / "pairs.jsonl", data["pairs"], {name: f["pairs"] for name, f in found.items()})


if __name__ == "__main__":
    run_stage("eval", main)
