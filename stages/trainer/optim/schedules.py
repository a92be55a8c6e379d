"""Learning rate schedules: the multiplier of the peak rate at a step, as pure functions of whole numbers.

``step`` counts the optimizer steps taken so far, from 0 to ``steps``. All schedules rise linearly from zero over the
first ``warmup_steps`` and stay within [0, 1]. The peak of pretraining comes from
`stages.scaling.laws.learning_rate` or a parameter.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR


def cosine(step: int, steps: int, warmup_steps: int, floor: float = 0.1) -> float:
    """Fall along half a cosine from the peak to ``floor`` (Loshchilov and Hutter 2016, arXiv:1608.03983, eq. 5).

    Bit for bit transformers' "cosine_with_min_lr" with min_lr_rate ``floor``; a tenth is Chinchilla's (Hoffmann et al.
    2022, arXiv:2203.15556).
    """
    if step < warmup_steps:
        return constant(step, warmup_steps)
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return 0.5 * (1 + math.cos(math.pi * progress)) * (1 - floor) + floor


def wsd(step: int, steps: int, warmup_steps: int, decay_steps: int, floor: float = 0.0) -> float:
    """Warm up, stay, decay: hold the peak until ``decay_steps`` are left, then fall by 1 - sqrt to ``floor``.

    Hägele et al. 2024 (arXiv:2405.18392), where 1 - sqrt ends in a lower loss than the linear decay that SmolLM2 uses
    (arXiv:2502.02737). The loss falls fast in the decay: the high rate moved the weights far along a valley of the loss
    while they bounced between its walls, and now they sink to its floor (Wen et al. 2024, arXiv:2410.05192). A warmup
    that reaches into the decay gives way where they meet.
    """
    progress = min(1.0, max(0, step - (steps - decay_steps)) / max(1, decay_steps))
    return min(constant(step, warmup_steps), (1 - math.sqrt(progress)) * (1 - floor) + floor)


def constant(step: int, warmup_steps: int) -> float:
    """Hold the peak after the warmup, for optimizers that average their weights instead of lowering the rate."""
    return step / warmup_steps if step < warmup_steps else 1.0


# name -> multiplier of (step, steps, warmup_steps, decay_steps)
SCHEDULES: dict[str, Callable[[int, int, int, int], float]] = {
    "cosine": lambda step, steps, warmup_steps, decay_steps: cosine(step, steps, warmup_steps),
    "wsd": wsd,
    "constant": lambda step, steps, warmup_steps, decay_steps: constant(step, warmup_steps),
}


def scheduler(
    optimizer: "Optimizer", name: str, steps: int, warmup_steps: int, decay_share: float, first_step: int = 0
) -> "LambdaLR":
    """Return a torch LambdaLR that scales the rate of every group of ``optimizer``.

    Args:
        name: one of SCHEDULES.
        steps: optimizer steps of the whole run.
        warmup_steps: transformers takes a share; its rounding is ceil(share * steps).
        decay_share: share of ``steps`` that "wsd" spends on the decay; the others do not read it.
        first_step: step of the schedule at which ``optimizer`` begins.
    """
    from torch.optim.lr_scheduler import LambdaLR

    multiplier, decay_steps = SCHEDULES[name], round(decay_share * steps)
    return LambdaLR(optimizer, lambda step: multiplier(first_step + step, steps, warmup_steps, decay_steps))
