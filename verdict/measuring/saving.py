"""What a checkpoint costs: weights, states, hashes and sync, as the trainer writes and publishes it."""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from stages.trainer.loop.preflight import SyntheticTraining
from stages.trainer.saving import sealing
from stages.trainer.saving.checkpoints import COST_SHARE, FIRST_SECONDS, LONGEST_SECONDS
from verdict.claims import Claim
from verdict.measuring.intervals import Measured, median_interval
from verdict.measuring.setting import Setting
from verdict.measuring.steps import prepared

SAVES = 5


def checkpoint_cost(claim: Claim, setting: Setting) -> Measured:
    """Measure the share of the time that saving takes at the interval that the trainer chooses."""
    costs = setting.remember(lambda: _costs(setting), "saves", setting.narrow)
    return median_interval([cost / (cost + _interval(cost)) for cost in costs], seconds=statistics.median(costs))


def checkpoint_interval(claim: Claim, setting: Setting) -> Measured:
    """Measure the minutes between checkpoints at which saving costs 1 % of the time."""
    costs = setting.remember(lambda: _costs(setting), "saves", setting.narrow)
    return median_interval([_interval(cost) / 60 for cost in costs], seconds=statistics.median(costs))


def _interval(cost: float) -> float:
    return min(LONGEST_SECONDS, max(FIRST_SECONDS, cost / COST_SHARE))


def _costs(setting: Setting) -> list[float]:
    """Return the seconds that training waits for each of a few checkpoints."""
    training, _ = prepared(setting, setting.narrow, {})
    with tempfile.TemporaryDirectory() as name:
        return [_save(training, Path(name), step) for step in range(1, SAVES + 1)]


def _save(training: SyntheticTraining, scratch: Path, step: int) -> float:
    began = time.perf_counter()
    written = scratch / "partial" / f"checkpoint-{step}"
    training.model.save_pretrained(written)
    torch.save(training.optimizer.state_dict(), written / "optimizer.pt")
    sealing.publish(written, scratch)
    sealing.prune(scratch)
    return time.perf_counter() - began
