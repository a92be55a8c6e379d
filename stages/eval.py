"""DVC stage `eval`: measure base, sft and dpo on held-out text, tasks, conversations and preferences.

Reads  out/pretrain, out/sft, out/dpo; data.validation, data.evals, and the test part of data.sft and data.preferences;
       out/filter and out/pack for the n-gram baselines; out/size, out/forecast and the reports of the stages before.
Writes out/eval/      documents.jsonl, conversations.jsonl, pairs.jsonl, tasks.jsonl: every example's score
       reports/eval/  metrics.json, headline.json, models.json, bits_per_byte.csv, preferences.csv, samples.jsonl,
                      summary.txt, summary.md
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contract import Account, Run, run_stage
from stages.contract.process import worker
from stages.contract.tracking.spool import MODEL_FIGURES
from stages.evaluation.reporting.summary import STAGES
from stages.scaling.ladder import Prediction
from stages.scaling.plan import PLAN

if TYPE_CHECKING:
    import numpy as np

    from stages.evaluation.measuring.measured import HeldOutData, Measured

MODELS = {"base": Path("out/pretrain"), "sft": Path("out/sft"), "dpo": Path("out/dpo")}
HEADLINE = {  # of the final model: name in `dvc metrics show` -> key in metrics.json
    "bits_per_byte": "bits_per_byte.dpo.overall",
    "assistant_loss": "assistant_loss.dpo.nats_per_token",
    "preference_accuracy": "preferences.dpo.accuracy",
    "reward_margin": "preferences.reward.margin",
    "inside": "forecast.inside",
}
EARLIER = {name: Path(f"reports/{name}/metrics.json") for name in STAGES if name != "eval"} | {"plan": PLAN}
PRETRAINED = Path("reports/pretrain/metrics.json")


def main(run: Run) -> None:
    """Measure the models on held-out data, and write the closing table.

    A worker measures its share of the models.
    """
    data = _held_out(run)
    if worker.is_worker():
        _measure_share(run, data)
        return
    measured = _measure_all(run, data)
    from stages.evaluation.reporting import layout, page, summary
    from stages.evaluation.reporting.figures import figures, forecast_figures

    wanted = run.params.eval
    _account(run, data, measured["base"])
    ngrams = _ngrams(wanted.ngram_symbols, data, measured["base"])
    reached = json.loads(PRETRAINED.read_text())["validation_loss"]
    metrics = figures(data, measured, ngrams, run.params.dpo.beta, wanted.new_tokens)
    metrics["forecast"] = forecast_figures(Prediction.read(), reached)
    run.report(metrics, HEADLINE)
    _write_tables(run, data, measured, metrics)
    earlier = {name: json.loads(path.read_text()) for name, path in EARLIER.items() if path.exists()}
    closing = summary.summary_blocks(metrics, earlier | {"eval": {"records": run.accounts}})
    (run.reports / "summary.md").write_text(layout.markdown(closing), encoding="utf-8")
    (run.reports / "summary.txt").write_text(layout.text(closing), encoding="utf-8")
    if not run.in_flow:  # which writes and prints these last
        print("\n" + layout.text(closing), flush=True)
        print(f"Report: {page.write_page(Path.cwd(), running='eval')}", flush=True)


def _held_out(run: Run) -> "HeldOutData":
    """Read the held-out data, and account for texts and tasks."""
    from stages.corpus.chats.conversations import read_conversations, read_preferences
    from stages.corpus.reading.documents import read_documents
    from stages.corpus.reading.rejections import count_reasons
    from stages.evaluation.measuring import choice, examples
    from stages.evaluation.measuring.evaluations import read_evaluations
    from stages.evaluation.measuring.measured import HeldOutData

    wanted, most = run.params.eval, run.params.max_rejected
    corpus = read_documents(run.params.data.validation)
    documents, unreadable = corpus.table.to_pylist(), count_reasons(corpus.rejected)
    texts = choice.share(documents, wanted.validation_bytes)
    beyond = {"beyond eval.validation_bytes": len(documents) - len(texts)} if len(texts) < len(documents) else {}
    read = len(documents) + sum(unreadable.values())
    run.account(Account("data.validation", "documents", read, len(texts), unreadable, beyond), most)
    evals = read_evaluations(run.params.data.evals)
    tasks = examples.tasks(evals.values, wanted.limit, run.params.pack.row_tokens)
    run.account(tasks.account(evals.rejected), most)
    return HeldOutData(
        texts=texts,
        chats=[c["messages"] for c in read_conversations(run.params.data.sft).test],
        pairs=read_preferences(run.params.data.preferences).test,
        tasks=tasks.found,
        not_run=tasks.not_run,
    )


def _account(run: Run, data: "HeldOutData", measured: "Measured") -> None:
    """Account for the held-out conversations and pairs, of which some have no answer left within the context."""
    chats, problems, most = len(data.chats), measured.problems, run.params.max_rejected
    silent = int(measured.loss["no_answer_left"]) if measured.loss else chats
    dropped = {"no answer left": silent} if silent else {}
    run.account(Account("data.sft", "held-out conversations", chats, chats - silent, {}, dropped), most)
    dropped = {why: problems.count(why) for why in sorted({*problems} - {""})}
    used = len(problems) - sum(dropped.values())
    run.account(Account("data.preferences", "held-out pairs", len(problems), used, {}, dropped), most)


def _measure_all(run: Run, data: "HeldOutData") -> "dict[str, Measured]":
    """Measure the models, each on a device of its own where there are several; the values are the same."""
    from stages.evaluation.measuring.keeping import load_measured
    from stages.trainer.parallel.launching import launch
    from stages.trainer.plan.hardware import detect_hardware

    machine = detect_hardware()
    if machine.count > 1:
        launch(run, machine, min(machine.count, len(MODELS)))
    for name in MODELS:
        _measure(run, name, data, machine.device)
    return {name: load_measured(_folder(run, name)) for name in MODELS}


def _measure_share(run: Run, data: "HeldOutData") -> None:
    """Measure this worker's models on its own device."""
    from stages.trainer.plan.hardware import detect_hardware

    device = detect_hardware().device
    for name in list(MODELS)[worker.rank() :: int(os.environ["WORLD_SIZE"])]:
        _measure(run, name, data, device)


def _measure(run: Run, name: str, data: "HeldOutData", device: str) -> None:
    """Measure one model and keep the result in the scratch folder, unless it is there."""
    if (folder := _folder(run, name)).exists():
        return
    from stages.evaluation.measuring.keeping import save_measured
    from stages.evaluation.measuring.measured import measure_model
    from stages.trainer.model import models

    print(f"measuring {name}", flush=True)
    model, tokenizer = models.load(MODELS[name])
    model = model.to(device).eval()
    wanted = run.params.eval
    measured = measure_model(name, model, tokenizer, data, wanted.prompts, wanted.new_tokens)
    save_measured(measured, folder)


def _folder(run: Run, name: str) -> Path:
    return run.scratch / f"measured-{name}"


def _ngrams(limit: int, data: "HeldOutData", base: "Measured") -> "dict[str, np.ndarray]":
    """Return - log p of each validation text under n-gram models of the training text, in nats."""
    from stages.corpus.tokens.packed_rows import load_rows
    from stages.evaluation.measuring import baselines

    print("n-gram baselines", flush=True)
    rows = load_rows(Path("out/pack/train"))
    keys, counts = baselines.byte_counts(Path("out/filter/documents.parquet"), limit)
    single, triple = baselines.byte_nats(keys, counts, [d["text"] for d in data.texts])
    keys, counts = baselines.token_counts(rows.tokens, rows.filled, base.vocabulary, limit)
    tokens = baselines.token_nats(keys, counts, base.vocabulary, base.documents, base.prefix)
    return {"byte_unigram": single, "byte_trigram": triple, "token_trigram": tokens}


def _write_tables(run: Run, data: "HeldOutData", measured: "dict[str, Measured]", metrics: dict[str, Any]) -> None:
    from stages.evaluation.reporting import tables

    tables.write_bits(run.reports / "bits_per_byte.csv", metrics["bits_per_byte"])
    tables.write_preferences(run.reports / "preferences.csv", metrics["preferences"])
    tables.write_samples(run.reports / "samples.jsonl", {name: of.answers for name, of in measured.items()})
    nats = {name: of.nats for name, of in measured.items()}
    tables.write_document_scores(run.out / "documents.jsonl", data.texts, nats)
    chat_nats = {name: of.chat_nats for name, of in measured.items()}
    tables.write_conversations(run.out / "conversations.jsonl", chat_nats)
    tables.write_examples(run.out / "tasks.jsonl", {name: of.examples for name, of in measured.items()})
    tables.write_models(run.reports / MODEL_FIGURES, {name: str(path) for name, path in MODELS.items()}, metrics)
    logprobs = {name: of.pairs for name, of in measured.items()}
    tables.write_pairs(run.out / "pairs.jsonl", data.pairs, measured["base"].problems, logprobs)


if __name__ == "__main__":
    run_stage("eval", main)
