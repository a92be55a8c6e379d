"""The table of measurements: name -> module of verdict/measuring that has a function of this name.

A measurement takes a `Claim` and a `Setting` and returns a `Measured`. Modules are imported when they are called.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

MEASUREMENTS = {
    "step_pair": "steps",
    "micro_batches": "steps",
    "trained_loss": "quality",
    "tuned_loss": "quality",
    "rate_tuning": "quality",
    "lottery_ticket": "quality",
    "dedup_share": "data",
    "filter_share": "pipeline",
    "packing_positions": "data",
    "packing_rate": "data",
    "checkpoint_cost": "saving",
    "checkpoint_interval": "saving",
    "ladder_speed": "ladder",
    "ladder_memory": "ladder",
    "ladder_cost": "ladder",
    "dpo_points": "pipeline",
    "sft_gain": "pipeline",
}


def find_measurement(name: str) -> Callable[..., Any]:
    """Return the function of a measurement."""
    function: Callable[..., Any] = getattr(import_module(f"verdict.measuring.{MEASUREMENTS[name]}"), name)
    return function
