"""Measure on held-out preference pairs whether the model finds the chosen answer likelier than the rejected one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.corpus.chats.encoding import Pair
from stages.evaluation.measuring.scoring import sequence_logprobs
from stages.evaluation.paired import paired_difference

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def answer_logprobs(model: "PreTrainedModel", pairs: Sequence[Pair]) -> np.ndarray:
    """Return log p(answer | prompt) in nats: shape (pairs, 2), chosen then rejected, float64."""
    chosen = sequence_logprobs(model, [p.chosen for p in pairs], [p.chosen_positions for p in pairs])
    rejected = sequence_logprobs(model, [p.rejected for p in pairs], [p.rejected_positions for p in pairs])
    return np.stack([chosen, rejected], axis=1)


def answer_lengths(pairs: Sequence[Pair]) -> np.ndarray:
    """Tokens of the answers: shape (pairs, 2), at least 1."""
    lengths = [(len(p.chosen_positions), len(p.rejected_positions)) for p in pairs]
    return np.maximum(np.array(lengths, dtype=np.int64).reshape(-1, 2), 1)


def accuracy(correct: np.ndarray) -> tuple[float, float]:
    """Share of true values and its standard error sqrt(p (1 - p) / n)."""
    p = float(np.mean(correct))
    return p, float(np.sqrt(p * (1 - p) / len(correct)))


def preference_verdict(difference: float, stderr: float) -> str:
    """Say how DPO changed the preference accuracy, judged against the standard error of the paired difference."""
    if difference > stderr:
        return "raised by more than its standard error"
    if difference < -stderr:
        return "lowered by more than its standard error"
    if difference == 0 and stderr == 0:
        return "not changed on any pair"
    return "not changed by more than its standard error"


def implicit_rewards(policy: np.ndarray, reference: np.ndarray, beta: float) -> np.ndarray:
    """DPO's reward beta (log policy - log reference) (arXiv:2305.18290, eq. 5): shape (pairs, 2), float64."""
    return beta * (policy - reference)


def preference_figures(logprobs: dict[str, np.ndarray], lengths: np.ndarray, beta: float) -> dict[str, dict[str, Any]]:
    """All figures from the answers' log-probabilities of each model, each shape (pairs, 2).

    ``drift`` is by how much dpo's differ from sft's, in nats a token: means over the pairs.

    Args:
        logprobs: with the keys "sft" and "dpo" for the comparison.
        lengths: tokens of the answers, shape (pairs, 2).
    """
    result: dict[str, dict[str, Any]] = {}
    correct: dict[str, np.ndarray] = {}
    for name, values in logprobs.items():
        per_token = values / lengths
        correct[name] = values[:, 0] > values[:, 1]
        p, se = accuracy(correct[name])
        q, qse = accuracy(per_token[:, 0] > per_token[:, 1])
        result[name] = {"accuracy": p, "stderr": se, "per_token_accuracy": q, "per_token_stderr": qse}
    difference, stderr = paired_difference(correct["sft"], correct["dpo"])
    rewards = implicit_rewards(logprobs["dpo"], logprobs["sft"], beta)
    margins = rewards[:, 0] - rewards[:, 1]
    share, share_stderr = accuracy(margins > 0)
    result["sft_to_dpo"] = {"difference": difference, "verdict": preference_verdict(difference, stderr)}
    if np.isfinite(stderr):
        result["sft_to_dpo"]["stderr"] = stderr
    result["reward"] = {
        "margin": float(margins.mean()),
        "chosen": float(rewards[:, 0].mean()),
        "rejected": float(rewards[:, 1].mean()),
        "accuracy": share,
        "accuracy_stderr": share_stderr,
    }
    drift = ((logprobs["dpo"] - logprobs["sft"]) / lengths).mean(axis=0)
    result["drift"] = {"chosen": float(drift[0]), "rejected": float(drift[1])}
    return result
