"""What a checkpoint costs a training: seconds for which it waits, and the interval that follows.

On a GPU training waits for a copy to the host's memory, and a thread writes it. On a CPU it waits for the files.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from stages.trainer.loop.preflight import SyntheticTraining
from stages.trainer.saving import sealing
from stages.trainer.saving.checkpoints import chosen_interval
from stages.trainer.saving.copies import HostCopies
from verdict.claims import Claim
from verdict.measuring.intervals import Measured, median_interval
from verdict.measuring.setting import Setting
from verdict.measuring.steps import prepared

SAVES = 5


def checkpoint_cost(claim: Claim, setting: Setting) -> Measured:
    """Measure the share of the time that training waits, at the interval that the trainer chooses."""
    costs = setting.remember(lambda: _costs(setting), "saves", setting.narrow)
    shares = [waited / (waited + chosen_interval(waited, writing)) for waited, writing in costs]
    return median_interval(shares, seconds=statistics.median(waited for waited, _ in costs))


def checkpoint_interval(claim: Claim, setting: Setting) -> Measured:
    """Measure the minutes between checkpoints that the trainer chooses."""
    costs = setting.remember(lambda: _costs(setting), "saves", setting.narrow)
    minutes = [chosen_interval(waited, writing) / 60 for waited, writing in costs]
    return median_interval(minutes, seconds=statistics.median(waited for waited, _ in costs))


def _costs(setting: Setting) -> list[tuple[float, float]]:
    """Return the seconds that training waits for each of a few checkpoints, and those of the thread that writes it."""
    training, _ = prepared(setting, setting.narrow, {})
    copies = HostCopies(pinned=True) if setting.hardware.device == "cuda" else None
    if copies:
        copies.take(_state(training))  # allocates
    with tempfile.TemporaryDirectory() as name:
        return [_save(training, copies, Path(name), step) for step in range(1, SAVES + 1)]


def _save(training: SyntheticTraining, copies: HostCopies | None, scratch: Path, step: int) -> tuple[float, float]:
    began = time.perf_counter()
    state = _state(training)
    state = copies.take(state) if copies else state
    copied = time.perf_counter()
    written = scratch / "partial" / f"checkpoint-{step}"
    training.model.save_pretrained(written, state_dict=state["model"])
    torch.save(state["optimizer"], written / "optimizer.pt")
    sealing.publish(written, scratch)
    sealing.prune(scratch)
    ended = time.perf_counter()
    return (copied - began, ended - copied) if copies else (ended - began, 0.0)


def _state(training: SyntheticTraining) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}
