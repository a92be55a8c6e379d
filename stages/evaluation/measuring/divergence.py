"""How far one model is from another: Kullback-Leibler divergence over the whole vocabulary, nothing drawn.

    KL(p || q) = sum over tokens v of p(v) (log p(v) - log q(v))

at each of the assistant's positions of held-out conversations, over the whole vocabulary, in nats a token. DPO's beta
limits this KL (Rafailov et al. 2023, arXiv:2305.18290, eq. 3), but there over the model's own answers.
"""

from typing import NamedTuple

import numpy as np

MOST_POSITIONS = 2**15  # of which a model's predictions are kept: 512 MiB at a width of 4096
CHUNK_LOGITS = 2**25  # elements of one model's logits that are in memory at a time


class Predictions(NamedTuple):
    """Next-token distributions at N positions, as the head's input and weights.

    ``hidden`` fp32 (N, D), ``head`` fp32 (V, D). Logits would be V / D times larger.
    """

    hidden: np.ndarray
    head: np.ndarray


def mean_kl(model: Predictions, reference: Predictions) -> float:
    """Mean of KL(model || reference) over the positions, in nats; they are the same ones of both."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    heads = [torch.from_numpy(of.head).to(device) for of in (model, reference)]
    total, rows = 0.0, max(1, CHUNK_LOGITS // len(model.head))
    for at in range(0, len(model.hidden), rows):
        log_p, log_q = (
            (torch.from_numpy(of.hidden[at : at + rows]).to(device) @ head.t()).log_softmax(-1)
            for of, head in zip((model, reference), heads, strict=True)
        )
        total += float((log_p.exp() * (log_p - log_q)).sum(-1).double().sum())
    return total / len(model.hidden)
