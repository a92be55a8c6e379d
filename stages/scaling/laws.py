"""Scaling laws as plain functions of FLOPs, parameters and tokens.

N counts the parameters that take part in matrix products (blocks and head, not the input embedding), so that
6·N·D is the training compute of D tokens (Kaplan et al. 2020, arXiv:2001.08361).
"""

import math

# Hoffmann et al. 2022 (arXiv:2203.15556), parametric fit as corrected by Besiroglu et al. 2024 (arXiv:2404.10102).
ENTROPY, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658

# Decay of repeated data's worth, in epochs: Muennighoff et al. 2023 (arXiv:2305.16264), R*_D.
REPEAT_DECAY = 15.39

# Small models would get ever higher rates. The highest best rate of Step-law's grids is 0.008; at a million parameters
# and two million tokens (Muon), 0.007 to 0.015 are equally good.
HIGHEST_RATE = 0.01
BATCH_TOKENS = 0.571  # power of D in Step-law's batch
RATES = (-0.713, 0.307)  # powers of N and D in Step-law's rate
# Of the best rate at a given batch below the rule's: `python -m benchmarks.forecasts` fits it on Step-law's grids.
BATCH_EXPONENT = 0.75


def split_budget(flops: float, tokens_per_parameter: float, max_tokens: float) -> tuple[float, float]:
    """Return parameters N and tokens D with 6·N·D = ``flops`` and D = ``tokens_per_parameter``·N.

    Where that exceeds ``max_tokens``, D is ``max_tokens`` and the rest of the budget goes into N.
    """
    parameters = math.sqrt(flops / (6 * tokens_per_parameter))
    tokens = min(tokens_per_parameter * parameters, max_tokens)
    return flops / (6 * tokens), tokens


def worth(tokens: float, unique_tokens: float) -> float:
    """Return the number of new tokens that ``tokens`` tokens, repetitions included, are worth.

    A repeated token teaches less than a new one, and each pass less than the one before. Muennighoff et al. (eq. 6)
    weight the passes by a factor that decays by e every REPEAT_DECAY of them.
    """
    if tokens <= unique_tokens:
        return tokens
    repeats = tokens / unique_tokens - 1
    return unique_tokens + unique_tokens * REPEAT_DECAY * (1 - math.exp(-repeats / REPEAT_DECAY))


def predicted_loss(parameters: float, tokens: float, unique_tokens: float) -> float:
    """Return the loss in nats per token, on the data and tokenizer of the fit: to compare plans, not to forecast."""
    return ENTROPY + A / parameters**ALPHA + B / worth(tokens, unique_tokens) ** BETA


def batch_tokens(tokens: float) -> float:
    """Return the best batch in tokens for a training of ``tokens`` tokens.

    Step-law (Li et al. 2025, arXiv:2503.04715), fitted from 2e9 to 1e11 tokens.
    """
    return 0.58 * tokens**BATCH_TOKENS


def learning_rate(block_parameters: float, tokens: float, batch: float) -> float:
    """Return the best peak learning rate of AdamW: Step-law, fitted from 6e7 to 1e9 parameters.

    Args:
        block_parameters: without embedding and head, as Step-law counts N.
        tokens: of the whole training, repeated ones included.
        batch: in tokens. Below the rule's own batch, the best rate falls with it; above, it stays.
    """
    rate = min(HIGHEST_RATE, 1.79 * block_parameters ** RATES[0] * tokens ** RATES[1])
    return rate * min(1.0, batch / batch_tokens(tokens)) ** BATCH_EXPONENT
