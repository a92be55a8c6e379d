"""The closing table of a run: what went in, what came out, what each step was worth, said as it is."""

from stages.evaluation import displacement
from stages.evaluation.layout import Block

MODELS = ("base", "sft", "dpo")
BASELINES = ("byte_unigram", "byte_trigram", "token_trigram")
MOST_ROWS = 12  # of a table; the rest is in the files beside it


def blocks(metrics: dict, earlier: dict[str, dict]) -> list[Block]:
    """The report's blocks.

    Args:
        metrics: as written to reports/eval/metrics.json; a part that could not be measured is a string saying why.
        earlier: metrics of the stages dedup, filter, pack and the plan of size; missing keys are left out.
    """
    return [
        _made(earlier),
        _bits(metrics["bits_per_byte"], metrics["validation"]),
        _tuning(metrics),
        _preferences(metrics["preferences"]),
        _tasks(metrics["tasks"], metrics["tasks_not_run"]),
    ]


def _made(earlier: dict[str, dict]) -> Block:
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
    return Block("What was made", [], [f"{label.ljust(width)}  {value}" for label, value in counts if value])


def _joined(*parts) -> str:
    return ", ".join(form.format(value) for value, form in parts if isinstance(value, int | float))


def _bits(bits: dict, validation: dict) -> Block:
    names = [*BASELINES, *MODELS]
    header = ["", "byte 1-gram", "byte 3-gram", "token 3-gram", *MODELS]
    sources = sorted(set(bits["base"]) - {"overall"})
    rows = [[source, *(f"{bits[n][source]:.3f}" for n in names)] for source in ["overall", *sources[:MOST_ROWS]]]
    notes = [f"{validation['bytes']:,} bytes of {validation['documents']:,} documents; lower is better."]
    if len(sources) > MOST_ROWS:
        notes.append(f"{len(sources) - MOST_ROWS} more domains are in bits_per_byte.csv.")
    return Block("Bits per byte on held-out text", [header, *rows], [*notes, bits_sentence(bits)])


def bits_sentence(bits: dict) -> str:
    """Whether the base model beats the best n-gram model on all text."""
    best = min(BASELINES, key=lambda name: bits[name]["overall"])
    change = bits["base"]["overall"] / bits[best]["overall"] - 1
    name = best.replace("_", " ")
    if change < 0:
        return f"The base model needs {-change:.1%} fewer bits than the best n-gram model ({name})."
    return f"The base model did not beat the best n-gram model ({name}): it needs {change:.1%} more bits."


def _tuning(metrics: dict) -> Block:
    title = "Supervised fine-tuning, on held-out conversations"
    loss, stops = metrics["assistant_loss"], metrics["stops"]
    if isinstance(loss, str):
        return Block(title, [], [f"Not measured: {loss}."])
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
    return Block(title, rows, notes)


def _preferences(found: dict | str) -> Block:
    if isinstance(found, str):
        return Block("Preferences", [], [f"Not measured: {found}."])
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
    return Block(f"Preferences, on {found['pairs']:,} held-out pairs", rows, notes)


def preference_sentence(change: dict) -> str:
    """What DPO did to the preference accuracy, and whether that is more than its standard error."""
    points, stderr = 100 * change["difference"], 100 * change.get("stderr", float("nan"))
    size = f"{points:+.1f} ± {stderr:.1f} points, paired"
    return f"With DPO the preference accuracy was {change['verdict']} ({size})."


def _tasks(tasks: dict, not_run: dict[str, str]) -> Block:
    rows = [["", "examples", "chance", *MODELS]]
    for task in sorted(tasks)[:MOST_ROWS]:
        found = tasks[task]
        metric = "exact_match" if "exact_match" in found["base"] else "acc"
        chance = f"{100 * found['chance']:.1f} %" if "chance" in found else "-"
        shares = (_share(found[n][metric], found[n].get(f"{metric}_stderr")) for n in MODELS)
        rows.append([f"{task}, {metric}", f"{found['examples']:,}", chance, *shares])
    notes = [f"Not run: {name} ({reason})." for name, reason in sorted(not_run.items())]
    if not tasks:
        return Block("Tasks", [], ["Not measured: no task of a format that can be run.", *notes])
    return Block("Tasks, zero-shot, by lm-evaluation-harness", rows, notes)


def _share(value: float, stderr: float | None) -> str:
    return f"{100 * value:.1f} %" if stderr is None else f"{100 * value:.1f} ± {100 * stderr:.1f} %"
