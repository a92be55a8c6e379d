"""Put the measured figures of all models side by side, as in reports/eval/metrics.json."""

from typing import Any

import numpy as np

from stages.evaluation.measuring import bits, divergence, harness, preferences
from stages.evaluation.measuring.examples import Example
from stages.evaluation.measuring.measured import HeldOutData, Measured
from stages.scaling.ladder import Prediction


def figures(
    data: HeldOutData, measured: dict[str, Measured], ngrams: dict[str, np.ndarray], beta: float, new_tokens: int
) -> dict[str, Any]:
    """Return nested numbers and strings; a part without held-out data is a string with the reason.

    Args:
        data: held out.
        measured: by model: base, sft and dpo.
        ngrams: - log p of each validation text in nats, by baseline.
        beta: of DPO's loss, for its implicit reward.
    """
    sizes = np.array([len(d["text"].encode("utf-8")) for d in data.texts])
    sources = [d["source"] for d in data.texts]
    nats = {name: f.nats for name, f in measured.items()} | ngrams
    return {
        "validation": {"documents": len(sizes), "bytes": int(sizes.sum())},
        "bits_per_byte": {name: bits.bits_per_byte(values, sizes, sources) for name, values in nats.items()},
        "assistant_loss": _losses(data, measured),
        "kl": _divergences(measured),
        "stops": _stops(measured, new_tokens),
        "preferences": _preferences(data, measured, beta),
        "tasks": {name: _task(name, rows, measured) for name, rows in data.tasks.items()},
        "tasks_not_run": data.not_run,
    }


def forecast_figures(forecast: Prediction, reached: float) -> dict[str, float] | str:
    """Return the forecast of the base model beside the validation loss it ``reached``; why, if there is no forecast.

    ``error`` is predicted over reached, less 1; ``inside`` is 1 if the interval has the loss, else 0.
    """
    if forecast.loss is None or forecast.low is None or forecast.high is None:
        return forecast.reason
    inside = int(forecast.low <= reached <= forecast.high)
    return forecast.figures() | {"reached": reached, "error": forecast.loss / reached - 1, "inside": inside}


def _losses(data: HeldOutData, measured: dict[str, Measured]) -> dict[str, Any] | str:
    if not data.chats:
        return "no held-out conversation"
    if measured["base"].loss is None:
        return "no answer of a held-out conversation is left within the context"
    return {"conversations": len(data.chats)} | {name: f.loss for name, f in measured.items()}


def _divergences(measured: dict[str, Measured]) -> dict[str, Any] | str:
    """Return the KL of each tuned model from the model before, in nats a token."""
    base, sft, dpo = (measured[name].predictions for name in ("base", "sft", "dpo"))
    if base is None or sft is None or dpo is None:
        return "no held-out conversation"
    return {"sft_from_base": divergence.mean_kl(sft, base), "dpo_from_sft": divergence.mean_kl(dpo, sft)}


def _stops(measured: dict[str, Measured], new_tokens: int) -> dict[str, Any] | str:
    prompts = len(measured["base"].answers)
    if not prompts:
        return "no held-out prompt"
    stopped = {name: sum(a.ended for a in f.answers) for name, f in measured.items()}
    return stopped | {"prompts": prompts, "new_tokens": new_tokens}


def _preferences(data: HeldOutData, measured: dict[str, Measured], beta: float) -> dict[str, Any] | str:
    if not data.pairs:
        return "no held-out pair"
    logprobs = {name: f.pairs for name, f in measured.items()}
    if not len(logprobs["base"]):
        return "no held-out pair has two different answers within the context"
    figures = preferences.preference_figures(logprobs, measured["base"].lengths, beta)
    return figures | {"pairs": len(logprobs["base"]), "cut": measured["base"].cut}


def _task(name: str, rows: list[Example], measured: dict[str, Measured]) -> dict[str, Any]:
    guessing = harness.chance(rows)
    chance = {} if guessing is None else {"chance": guessing}
    return {"examples": len(rows)} | chance | {model: f.tasks[name] for model, f in measured.items()}
