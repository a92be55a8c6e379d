"""Profile of a few steps, as artifacts of the run: time by kernel, and memory."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from torch.profiler import profile as Profiler

FIRST, STEPS = 5, 3  # steps before the first profiled one, when everything is compiled; and profiled ones


def profile_wanted() -> bool:
    """Return whether VERDICT_PROFILE is set; it bears no identity."""
    return os.environ.get("VERDICT_PROFILE", "") not in ("", "0")


class Profile(TrainerCallback):
    """Write a profile to ``folder`` after step FIRST + STEPS.

    That is trace.json (chrome://tracing, Perfetto), kernels.txt with the sums by kernel, and on CUDA memory.pickle
    (pytorch.org/memory_viz).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.profiler: Profiler | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.profiler is None and state.global_step == FIRST:
            self._start()
        elif self.profiler is not None and state.global_step == FIRST + STEPS:
            self._stop()

    def _start(self) -> None:
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.memory._record_memory_history(max_entries=100_000)
        profiler = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])])
        self.profiler = profiler
        profiler.start()

    def _stop(self) -> None:
        assert self.profiler is not None
        cuda = torch.cuda.is_available()
        self.profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.profiler.export_chrome_trace(str(self.folder / "trace.json"))
        order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
        sums = self.profiler.key_averages().table(sort_by=order, row_limit=40)
        (self.folder / "kernels.txt").write_text(sums + "\n")
        if cuda:
            torch.cuda.memory._dump_snapshot(str(self.folder / "memory.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)
        self.profiler = None
