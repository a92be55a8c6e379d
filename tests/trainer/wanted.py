"""Input of `recipe.resolve` that tests of this room share: a small CPU, and how to train."""

from stages.contract.params import Trainer, load_params
from stages.trainer.plan.hardware import Hardware

CPU = Hardware("cpu", "2 threads", 16 * 2**30, False, 16 * 2**30)


def adamw(**switches: object) -> Trainer:
    """params.yaml's `trainer` with AdamW and a cosine, whose losses and sizes the tests know, then ``switches``."""
    known = {"optimizer": "adamw", "schedule": "cosine", "decay": 0.2}
    return load_params().trainer.model_copy(update=known | switches)
