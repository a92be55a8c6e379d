"""Meter of a training's speed, memory and power, between two readings."""

import contextlib
import time
from typing import TYPE_CHECKING

from stages.scaling.shapes import Shape
from stages.trainer.plan.hardware import Hardware

if TYPE_CHECKING:
    from stages.trainer.loop.causal import CausalTrainer


class Meter:
    """Measure speed, memory and power for the tracker; they bear no identity, so they are in no tracked file.

    Args:
        shape: of the model; its FLOPs per token count the head and attention, not the embedding.
        step_tokens: tokens of an optimizer step, over all devices.
        row_tokens: T, over which attention is counted.
        trainer: with ``data_seconds``, the wait of a step for its data, and ``guard``.
    """

    def __init__(
        self, shape: Shape, hardware: Hardware, step_tokens: int, row_tokens: int, trainer: "CausalTrainer"
    ) -> None:
        self.hardware, self.step_tokens, self.trainer = hardware, step_tokens, trainer
        # MFU is the share of the peak that useful products take. Most papers count attention over all T tokens; a
        # causal kernel computes half of it, and within packed documents less still. Both are logged, since a figure
        # without its convention compares with nothing.
        self.full = shape.flops_per_token(row_tokens)
        self.causal = (shape.flops_per_token(row_tokens) + 6 * shape.matmul_parameters) / 2
        self.since: tuple[int, float, float] | None = None

    def read(self, step: int) -> dict[str, float]:
        """Return the rates since the last reading; {} at the first, whose steps have compiled."""
        now, waited = time.perf_counter(), self.trainer.data_seconds
        before, self.since = self.since, (step, now, waited)
        if before is None or step <= before[0]:
            return {}
        seconds = now - before[1]
        rate = (step - before[0]) * self.step_tokens / seconds
        values = {
            "tokens_per_second": rate,
            "data_wait_share": (waited - before[2]) / seconds,
            "skipped_steps": float(self.trainer.guard.skipped),
        }
        if peak := self.hardware.peak_flops:
            per_device = rate / self.hardware.count / peak
            values |= {"mfu_full_attention": per_device * self.full, "mfu_causal_attention": per_device * self.causal}
        return values | _device()


def _device() -> dict[str, float]:
    import torch

    if not torch.cuda.is_available():
        return {}
    stats = torch.cuda.memory_stats()
    values = {
        "memory_peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "memory_reserved_gib": torch.cuda.memory_reserved() / 2**30,
        "allocation_retries": float(stats["num_alloc_retries"]),
    }
    with contextlib.suppress(Exception):  # NVML is not everywhere
        values |= {"power_watts": torch.cuda.power_draw() / 1e3, "clock_mhz": float(torch.cuda.clock_rate())}
    return values
