"""The closing table of a run: its data, its models, and the figures of each on held-out data."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stages.evaluation.reporting import displacement
from stages.evaluation.reporting.layout import ReportBlock

MODELS = ("base", "sft", "dpo")
BASELINES = {"byte_unigram": "byte 1-gram", "byte_trigram": "byte 3-gram", "token_trigram": "token 3-gram"}
MOST_ROWS = 12  # of a table; the rest is in the files beside it
STAGES = ("dedup", "filter", "pack", "chats", "reference", "eval")  # that account for records
MOST_REASONS = 8  # why records were rejected or dropped


@dataclass(frozen=True)
class Records:
    """The account of one source in one stage; ``reasons`` are (verb, reason, count), most frequent first."""

    stage: str
    source: str
    read: int
    used: int
    rejected: int
    dropped: int
    reasons: list[tuple[str, str, int]]


def summary_blocks(metrics: dict[str, Any], earlier: dict[str, dict[str, Any]]) -> list[ReportBlock]:
    """Return the report's blocks.

    Args:
        metrics: as written to reports/eval/metrics.json; a part that could not be measured is a string saying why.
        earlier: metrics by stage, and the plan of size as ``plan``; missing keys have no row.
    """
    return [
        _made(earlier),
        *_records(earlier),
        *_forecast(metrics.get("forecast")),
        _bits(metrics["bits_per_byte"], metrics["validation"]),
        _tuning(metrics),
        _preferences(metrics["preferences"]),
        _tasks(metrics["tasks"], metrics["tasks_not_run"]),
    ]


def _made(earlier: dict[str, dict[str, Any]]) -> ReportBlock:
    dedup, rules, pack, plan = (earlier.get(name, {}) for name in ("dedup", "filter", "pack", "plan"))
    steps = (
        (dedup.get("documents_in"), "in"),
        (dedup.get("documents_out"), "after deduplication"),
        (rules.get("documents_out"), "after filtering"),
    )
    pack = pack.get("train", {})
    counts = [
        ("Documents", " → ".join(f"{n:,} {label}" for n, label in steps if isinstance(n, int))),
        ("Training tokens", _joined((pack.get("tokens"), "{:,} unique"), (plan.get("tokens"), "{:,} trained on"))),
        ("Parameters", _joined((plan.get("parameters"), "{:,}"))),
    ]
    width = max(len(label) for label, _ in counts)
    return ReportBlock("What was made", [], [f"{label.ljust(width)}  {value}" for label, value in counts if value])


def _records(earlier: dict[str, dict[str, Any]]) -> list[ReportBlock]:
    """Return a table with a row for each stage and source of records."""
    rows, reasons = [], []
    for of in records_of(earlier):
        numbers = (of.read, of.used, of.rejected, of.dropped)
        rows.append([f"{of.stage}, {of.source}", *(f"{number:,}" for number in numbers)])
        reasons += [(count, f"{of.stage}: {count:,} {reason}") for _, reason, count in of.reasons]
    if not rows:
        return []
    most = sorted(reasons, key=lambda reason: -reason[0])[:MOST_REASONS]
    notes = [f"Most frequent reasons: {'; '.join(text for _, text in most)}."] if most else []
    return [ReportBlock("Records", [["", "read", "used", "rejected", "dropped"], *rows], notes)]


def records_of(metrics: dict[str, dict[str, Any]]) -> Iterator[Records]:
    """Yield the records of each stage and source in ``metrics``, by stage, as their `Account` counted them."""
    for stage in STAGES:
        for source, counts in sorted(metrics.get(stage, {}).get("records", {}).items()):
            reasons = [
                (verb, reason, count)
                for verb in ("rejected", "dropped")
                for reason, count in counts[verb].items()
                if reason != "total"
            ]
            reasons.sort(key=lambda reason: -reason[2])
            totals = (counts["rejected"]["total"], counts["dropped"]["total"])
            yield Records(stage, source, counts["read"], counts["used"], *totals, reasons)


def _joined(*parts: tuple[float | None, str]) -> str:
    return ", ".join(form.format(value) for value, form in parts if isinstance(value, int | float))


def _forecast(forecast: dict[str, float] | str | None) -> list[ReportBlock]:
    """Return what the ladder predicted of the base model and what it reached; nothing in reports of before."""
    title = "Forecast of the base model"
    if not isinstance(forecast, dict):
        return [ReportBlock(title, [], [f"No forecast: {forecast}."])] if forecast else []
    names = ("loss", "low", "high", "reached")
    header = ["validation loss, nats per token", "predicted", "90 % from", "to", "reached"]
    row = ["pretrain", *(f"{forecast[name]:.3f}" for name in names)]
    return [ReportBlock(title, [header, row], [forecast_sentence(forecast)])]


def forecast_sentence(forecast: dict[str, float]) -> str:
    """Whether the reached loss lies in the interval, by how much the forecast missed it, and what it was made of."""
    verdict = "lies inside" if forecast["inside"] else "lies outside of"
    side = "high" if forecast["error"] > 0 else "low"
    return (
        f"The reached loss {verdict} the interval; the forecast is {abs(forecast['error']):.1%} too {side}. It comes "
        f"from {forecast['rungs']:.0f} rungs, the largest with {forecast['largest_share']:.1%} of the target's FLOPs, "
        f"all with {forecast['flops_share']:.1%}."
    )


def _bits(bits: dict[str, dict[str, float]], validation: dict[str, int]) -> ReportBlock:
    names = [*BASELINES, *MODELS]
    header = ["", *BASELINES.values(), *MODELS]
    sources = sorted(set(bits["base"]) - {"overall"})
    rows = [[source, *(f"{bits[n][source]:.3f}" for n in names)] for source in ["overall", *sources[:MOST_ROWS]]]
    notes = [f"{validation['bytes']:,} bytes of {validation['documents']:,} documents; lower is better."]
    if len(sources) > MOST_ROWS:
        notes.append(f"{len(sources) - MOST_ROWS} more domains are in bits_per_byte.csv.")
    return ReportBlock("Bits per byte on held-out text", [header, *rows], [*notes, bits_sentence(bits)])


def bits_sentence(bits: dict[str, dict[str, float]]) -> str:
    """Whether the base model beats the best n-gram model on all text."""
    best = min(BASELINES, key=lambda name: bits[name]["overall"])
    change = bits["base"]["overall"] / bits[best]["overall"] - 1
    name = best.replace("_", " ")
    if change < 0:
        return f"The base model needs {-change:.1%} fewer bits than the best n-gram model ({name})."
    return f"The base model did not beat the best n-gram model ({name}): it needs {change:.1%} more bits."


def _tuning(metrics: dict[str, Any]) -> ReportBlock:
    title = "Supervised fine-tuning, on held-out conversations"
    loss, stops = metrics["assistant_loss"], metrics["stops"]
    if isinstance(loss, str):
        return ReportBlock(title, [], [f"Not measured: {loss}."])
    rows = [["", *MODELS], ["assistant loss, nats per token", *(f"{loss[n]['nats_per_token']:.3f}" for n in MODELS)]]
    if not isinstance(stops, str):
        label = f"greedy answers that end within {stops['new_tokens']} tokens"
        rows.append([label, *(f"{stops[n]} of {stops['prompts']}" for n in MODELS)])
    kl = metrics["kl"]
    moved = (f"{kl[pair]:.4f}" for pair in ("sft_from_base", "dpo_from_sft"))
    rows.append(["KL from the model before, nats per token", "-", *moved])
    before, after = loss["base"]["nats_per_token"], loss["sft"]["nats_per_token"]
    did = "lowered" if after < before else "did not lower"
    notes = [f"Fine-tuning {did} the loss on the assistant's words: {before:.3f} → {after:.3f} nats per token."]
    return ReportBlock(title, rows, notes)


def _preferences(found: dict[str, Any] | str) -> ReportBlock:
    if isinstance(found, str):
        return ReportBlock("Preferences", [], [f"Not measured: {found}."])
    rows = [["share of pairs with the chosen answer likelier", *MODELS]]
    for label, key, error in (
        ("  log-probability", "accuracy", "stderr"),
        ("  log-probability per token", "per_token_accuracy", "per_token_stderr"),
    ):
        rows.append([label.strip(), *(_share(found[n][key], found[n][error]) for n in MODELS)])
    reward, drift = found["reward"], found["drift"]
    margin = f"Mean margin of the implicit reward, chosen over rejected: {reward['margin']:+.4f}"
    notes = [
        f"{margin} (right on {_share(reward['accuracy'], reward['accuracy_stderr'])} of the pairs).",
        preference_sentence(found["sft_to_dpo"]),
        f"DPO changed the log-probability of the answers, per token: chosen {drift['chosen']:+.4f}, rejected "
        f"{drift['rejected']:+.4f} nats.",
    ]
    if warning := displacement.warning(drift["chosen"], "held-out pairs"):
        notes.append(warning)
    return ReportBlock(f"Preferences, on {found['pairs']:,} held-out pairs", rows, notes)


def preference_sentence(change: dict[str, Any]) -> str:
    """Say how DPO changed the preference accuracy, and whether that is more than its standard error."""
    points, stderr = 100 * change["difference"], 100 * change.get("stderr", float("nan"))
    size = f"{points:+.1f} ± {stderr:.1f} points, paired"
    return f"With DPO the preference accuracy was {change['verdict']} ({size})."


def _tasks(tasks: dict[str, dict[str, Any]], not_run: dict[str, str]) -> ReportBlock:
    rows = [["", "examples", "chance", *MODELS]]
    for task in sorted(tasks)[:MOST_ROWS]:
        found = tasks[task]
        metric = "exact_match" if "exact_match" in found["base"] else "acc"
        chance = f"{100 * found['chance']:.1f} %" if "chance" in found else "-"
        shares = (_share(found[n][metric], found[n].get(f"{metric}_stderr")) for n in MODELS)
        rows.append([f"{task}, {metric}", f"{found['examples']:,}", chance, *shares])
    notes = [f"Not run: {name} ({reason})." for name, reason in sorted(not_run.items())[:MOST_ROWS]]
    if len(not_run) > MOST_ROWS:
        notes.append(f"{len(not_run) - MOST_ROWS} more are in metrics.json.")
    if not tasks:
        return ReportBlock("Tasks", [], ["Not measured: no task of a format that can be run.", *notes])
    return ReportBlock("Tasks, zero-shot, by lm-evaluation-harness", rows, notes)


def _share(value: float, stderr: float | None) -> str:
    return f"{100 * value:.1f} %" if stderr is None else f"{100 * value:.1f} ± {100 * stderr:.1f} %"
