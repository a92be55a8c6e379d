"""Scaling laws as plain functions of FLOPs, parameters and tokens.

N counts the parameters that take part in matrix products (blocks and head, not the input embedding), so that
6·N·D is the training compute of D tokens (Kaplan et al. 2020, arXiv:2001.08361).
"""

import math

# Hoffmann et al. 2022 (arXiv:2203.15556), parametric fit as corrected by Besiroglu et al. 2024 (arXiv:2404.10102).
ENTROPY, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658

# Half-life of repeated data, in epochs: Muennighoff et al. 2023 (arXiv:2305.16264), R*_D.
REPEAT_DECAY = 15.39


def split_budget(flops: float, tokens_per_parameter: float, max_tokens: float) -> tuple[float, float]:
    """(parameters N, tokens D) with 6·N·D = ``flops`` and D = ``tokens_per_parameter``·N.

    Where that asks for more than ``max_tokens``, D is ``max_tokens`` and the rest of the budget goes into N.
    """
    parameters = math.sqrt(flops / (6 * tokens_per_parameter))
    tokens = min(tokens_per_parameter * parameters, max_tokens)
    return flops / (6 * tokens), tokens


def predicted_loss(parameters: float, tokens: float, unique_tokens: float) -> float:
    """Loss in nats a token, on the data and tokenizer of the fit: good for comparing plans, not for forecasting
    the loss on other text. Repeated tokens count for less (Muennighoff et al., eq. 6)."""
    repeats = max(0.0, tokens / unique_tokens - 1)
    worth = min(tokens, unique_tokens) + unique_tokens * REPEAT_DECAY * (1 - math.exp(-repeats / REPEAT_DECAY))
    return ENTROPY + A / parameters**ALPHA + B / worth**BETA


def batch_tokens(flops: float) -> float:
    """Best batch in tokens: DeepSeek LLM (arXiv:2401.02954), eq. 1, fitted from 1e17 to 2e19 FLOPs."""
    return 0.2920 * flops**0.3271


def learning_rate(flops: float) -> float:
    """Best peak learning rate of AdamW: DeepSeek LLM (arXiv:2401.02954), eq. 1."""
    return 0.3118 * flops**-0.1250
