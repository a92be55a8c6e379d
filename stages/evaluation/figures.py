"""What was measured on each model, put side by side: the figures of reports/eval/metrics.json."""

import numpy as np

from stages.evaluation import bits, divergence, harness, preferences


def figures(data: dict, found: dict[str, dict], ngrams: dict[str, np.ndarray], beta: float, new_tokens: int) -> dict:
    """Nested numbers and strings. A part without held-out data is a string that says so.

    Args:
        data: as for :func:`stages.evaluation.measure.measure`, with ``set_aside`` and ``not_run``.
        found: what that returned, by model: base, sft and dpo.
        ngrams: - log p of each validation text in nats, by baseline.
        beta: of DPO's loss, for its implicit reward.
    """
    sizes = np.array([len(d["text"].encode("utf-8")) for d in data["texts"]])
    sources = [d["source"] for d in data["texts"]]
    nats = {name: f["nats"] for name, f in found.items()} | ngrams
    return {
        "validation": {"documents": len(sizes), "bytes": int(sizes.sum())},
        "bits_per_byte": {name: bits.bits_per_byte(values, sizes, sources) for name, values in nats.items()},
        "assistant_loss": _losses(data, found),
        "kl": _divergences(found),
        "stops": _stops(found, new_tokens),
        "preferences": _preferences(data, found, beta),
        "tasks": {name: _task(name, rows, found) for name, rows in data["tasks"].items()},
        "tasks_not_run": data["not_run"],
        "set_aside": data["set_aside"],
    }


def _losses(data: dict, found: dict[str, dict]) -> dict | str:
    if not data["chats"]:
        return "no held-out conversation"
    return {"conversations": len(data["chats"])} | {name: f["loss"] for name, f in found.items()}


def _divergences(found: dict[str, dict]) -> dict | str:
    """KL from what each model was trained from, in nats a token."""
    if found["base"]["predictions"] is None:
        return "no held-out conversation"
    base, sft, dpo = (found[name]["predictions"] for name in ("base", "sft", "dpo"))
    return {"sft_from_base": divergence.mean_kl(sft, base), "dpo_from_sft": divergence.mean_kl(dpo, sft)}


def _stops(found: dict[str, dict], new_tokens: int) -> dict | str:
    prompts = len(found["base"]["answers"])
    if not prompts:
        return "no held-out prompt"
    stopped = {name: sum(a["stopped"] for a in f["answers"]) for name, f in found.items()}
    return stopped | {"prompts": prompts, "new_tokens": new_tokens}


def _preferences(data: dict, found: dict[str, dict], beta: float) -> dict | str:
    if not data["pairs"]:
        return "no held-out pair"
    logprobs = {name: f["pairs"] for name, f in found.items()}
    measured = preferences.measure(logprobs, found["base"]["lengths"], beta)
    return measured | {"pairs": len(data["pairs"]), "cut": found["base"]["cut"]}


def _task(name: str, rows: list[dict], found: dict[str, dict]) -> dict:
    guessing = harness.chance(rows)
    chance = {} if guessing is None else {"chance": guessing}
    return {"examples": len(rows)} | chance | {model: f["tasks"][name] for model, f in found.items()}
