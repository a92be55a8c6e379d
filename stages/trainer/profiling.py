"""A profile of a few steps as artifacts of the run: where the time goes, and the memory."""

import os
from pathlib import Path

from transformers import TrainerCallback

FIRST, STEPS = 5, 3  # steps before the first profiled one, when everything is compiled; and profiled ones


def wanted() -> bool:
    """VERDICT_PROFILE=1; it bears no identity."""
    return os.environ.get("VERDICT_PROFILE", "") not in ("", "0")


class Profile(TrainerCallback):
    """Writes trace.json (chrome://tracing, Perfetto), kernels.txt, the sums by kernel, and on CUDA memory.pickle
    (pytorch.org/memory_viz) to ``folder`` after step FIRST + STEPS."""

    def __init__(self, folder: Path):
        self.folder, self.profiler = folder, None

    def on_step_end(self, args, state, control, **kwargs):
        if self.profiler is None and state.global_step == FIRST:
            self._start()
        elif self.profiler is not None and state.global_step == FIRST + STEPS:
            self._stop()

    def _start(self):
        import torch
        from torch.profiler import ProfilerActivity, profile

        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.memory._record_memory_history(max_entries=100_000)
        self.profiler = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])])
        self.profiler.start()

    def _stop(self):
        import torch

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
