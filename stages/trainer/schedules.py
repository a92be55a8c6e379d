"""Learning rate schedules: the multiplier of the peak rate at a step, as pure functions of whole numbers.

``step`` counts the optimizer steps taken so far, from 0 to ``steps``. All rise linearly from zero over the first
``warmup_steps`` and stay within [0, 1].
"""

import math

from stages.contract.errors import UserError

NAMES = ("cosine", "wsd", "constant")


def cosine(step: int, steps: int, warmup_steps: int, floor: float = 0.1) -> float:
    """Half a cosine from the peak to ``floor`` (Loshchilov and Hutter 2016, arXiv:1608.03983, eq. 5, one period).

    Bit for bit transformers' "cosine_with_min_lr" with min_lr_rate ``floor``; a tenth is Chinchilla's (Hoffmann et al.
    2022, arXiv:2203.15556).
    """
    if step < warmup_steps:
        return constant(step, warmup_steps)
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return 0.5 * (1 + math.cos(math.pi * progress)) * (1 - floor) + floor


def wsd(step: int, steps: int, warmup_steps: int, decay_steps: int, floor: float = 0.0) -> float:
    """Warmup, stable, decay: the peak until ``decay_steps`` are left, then 1 - sqrt down to ``floor``.

    Hägele et al. 2024 (arXiv:2405.18392), where 1 - sqrt ends in a lower loss than the linear decay that SmolLM2 uses
    (arXiv:2502.02737). A warmup that reaches into the decay gives way to it where they meet.
    """
    progress = min(1.0, max(0, step - (steps - decay_steps)) / max(1, decay_steps))
    return min(constant(step, warmup_steps), (1 - math.sqrt(progress)) * (1 - floor) + floor)


def constant(step: int, warmup_steps: int) -> float:
    """The peak after the warmup, for optimizers that average their weights instead of lowering the rate."""
    return step / warmup_steps if step < warmup_steps else 1.0


def scheduler(optimizer, name: str, steps: int, warmup_steps: int, decay_share: float, first_step: int = 0):
    """A torch LambdaLR that scales the rate of every group of ``optimizer``.

    Args:
        name: one of NAMES.
        steps: of the optimizer, in the whole run.
        warmup_steps: transformers takes a share; its rounding is ceil(share * steps).
        decay_share: of ``steps``, that "wsd" spends on the decay; the others do not read it.
        first_step: of the schedule, at which ``optimizer`` begins.

    Raises:
        UserError: no schedule has that name.
    """
    from torch.optim.lr_scheduler import LambdaLR

    decay_steps = round(decay_share * steps)
    multipliers = {
        "cosine": lambda step: cosine(step, steps, warmup_steps),
        "wsd": lambda step: wsd(step, steps, warmup_steps, decay_steps),
        "constant": lambda step: constant(step, warmup_steps),
    }
    if name not in multipliers:
        raise UserError(f"no schedule is called {name!r}; there are {', '.join(NAMES)}.")
    multiplier = multipliers[name]
    return LambdaLR(optimizer, lambda step: multiplier(first_step + step))
