"""Checkpoints that survive a kill at any moment.

The Trainer, or the thread of `background`, writes checkpoint-N into <scratch>/partial. `sealing` adds a manifest with
size and sha256 of every file, syncs all and publishes it as <scratch>/checkpoint-N by one rename: a folder of that name
is complete. A resume verifies it and takes an older one if it is damaged; transformers takes the highest number
unchecked. Of several processes each writes its part; the first one's clock decides when, and it publishes.
"""

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.nn import Module
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.contract import disk
from stages.contract.errors import Preempted, UserError
from stages.contract.files import remove
from stages.contract.progress import clock
from stages.trainer.saving import sealing
from stages.trainer.saving.background import Background

FIRST_SECONDS = 10.0  # after which the first checkpoint is written and its cost is known
LONGEST_SECONDS = 900.0  # at most this much work is lost with the machine
COST_SHARE = 0.01  # of the time, that training may wait for checkpoints
WRITING_SHARE = 0.5  # of the time, that the background may write them
Handler = Callable[[int, FrameType | None], Any] | int | None  # of a signal


class Checkpoints(TrainerCallback):
    """Save by the clock, publish what was saved, and turn SIGTERM and SIGINT into a last checkpoint.

    The interval is VERDICT_CHECKPOINT_SECONDS, or chosen so that training waits 1 % of the time, at most every ten
    seconds and at least every fifteen minutes. It bears no identity: a resumed run ends in the same bytes. On a full
    disk one line is printed, training continues, and the next interval tries again.

    Args:
        scratch: folder in which checkpoints are published.
        every: saves only at multiples of so many steps, where all processes hold the same weights (local SGD).
        background: writes them while training continues; None: training waits.
    """

    def __init__(self, scratch: Path, every: int = 1, background: Background | None = None) -> None:
        self.scratch, self.every, self.background = scratch, every, background
        self.fixed = _fixed_interval()
        self.interval = self.fixed or FIRST_SECONDS
        self.saved_at = time.monotonic()
        self.asked_at = 0.0
        self.stopped = 0  # the signal received
        self.bytes = 0  # of the last checkpoint
        self.failed = ""  # why the last checkpoint could not be written
        self.complaint = ""  # what was printed about it
        self.put_off = False  # it was printed that one is due while another is written
        self.unfit = ""  # why this process cannot copy
        self.waited = self.writing = 0.0  # seconds of training, and of the background, for the last checkpoint
        self.handlers: dict[int, Handler] = {}  # of the signals before training

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if _first():
            remove(Path(args.output_dir))
        _agree()  # no process writes there before it is removed
        self.saved_at = time.monotonic()
        for number in (signal.SIGTERM, signal.SIGINT):
            self.handlers[number] = signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped = number

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        model: Module | None = None, optimizer: Optimizer | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        if state.global_step % self.every and state.global_step < state.max_steps:
            return
        now = time.monotonic()
        if self.background and not self.background.prepared:
            self.unfit = self.background.prepare()
        if not (writing := self.background is not None and self.background.busy()):
            self._collect()
        on_time = _first() and now - self.saved_at >= self.interval
        due, stopped, busy, unfit = _agree(on_time, self.stopped, writing, bool(self.unfit))
        if unfit:
            self._wait_from_now_on()
        if stopped:
            self._collect()
        if stopped or (due and not busy):
            self.asked_at = now
            (full,) = _agree(state.global_step < state.max_steps and _first() and self._full(model, optimizer))
            control.should_save = state.global_step < state.max_steps and not full
            self.saved_at = now  # if it is full, the next attempt comes after as long
        elif due:
            self._put_off()
        if stopped:
            self.stopped = stopped
            control.should_training_stop = True
        if self.background:
            self.background.active = not stopped  # the last one is not worth a copy

    def _wait_from_now_on(self) -> None:
        """Write checkpoints while training waits, in all processes, since one has no memory for its copy."""
        if self.background:
            self.background.close()
            self.background = None
        if _first():
            reason = self.unfit or "another process has no memory for its copy"
            print(f"training waits while a checkpoint is written: {reason}", flush=True)
        self.unfit = ""

    def _put_off(self) -> None:
        """Print once that a checkpoint is due while another is being written."""
        if _first() and self.background and self.background.folder and not self.put_off:
            print(f"{self.background.folder.name} is still being written; the next one waits for it", flush=True)
            self.put_off = True

    def _collect(self) -> None:
        """Take up how the work in the background ended; wait for it if it has not."""
        if not self.background or not (ended := self.background.ended()):
            return
        if ended.folder is None:
            self.unfit = (str(ended.error).partition("\n")[0] or type(ended.error).__name__) if ended.error else ""
            return
        with self._noting_refusal():
            if ended.error:
                raise ended.error
        self.writing = ended.seconds
        self._report(ended.folder)

    def _full(self, model: Module, optimizer: Optimizer | None) -> bool:
        """Return whether the disk has no room for a checkpoint, even after all but the newest are removed."""
        self.bytes = self.bytes or _bytes(model, optimizer)
        if disk.free(self.scratch) < self.bytes:
            sealing.prune(self.scratch, keep=1)
        if full := disk.free(self.scratch) < self.bytes:
            self._print_once(disk.explain("checkpoints", self.scratch, self.bytes))
        return full

    def guard(self, save: Callable[..., None]) -> Callable[..., None]:
        """Wrap ``save``, a Trainer's `_save_checkpoint`, so that a full disk does not end the training."""

        @functools.wraps(save)
        def guarded(*args: Any, **kwargs: Any) -> None:
            with self._noting_refusal():
                save(*args, **kwargs)

        return guarded

    @contextlib.contextmanager
    def _noting_refusal(self) -> Iterator[None]:
        """Keep in ``failed`` why the file system refused the block's writes; raise other errors."""
        try:
            yield
        except Exception as e:
            if not (reason := disk.refusal(e)):
                raise
            self.failed = reason

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        written = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (failed,) = _agree(bool(self.failed))  # all have written their parts, or copied them
        if failed and not self.failed:
            self.failed = "another process could not write its part"
        if not failed and self.background and self.background.active:
            self.background.publish(written, self._publish)
        else:
            with self._noting_refusal():
                if not failed:
                    self._publish(written)
            self._report(written)
            _agree()
        self.saved_at = time.monotonic()
        self.waited = self.saved_at - self.asked_at
        self._pace()

    def _publish(self, written: Path) -> None:
        """Publish the checkpoint ``written``, whose files are complete; the first process does."""
        if _first():
            self.bytes = disk.size(written)
            sealing.publish(written, self.scratch)
            sealing.prune(self.scratch)

    def _report(self, written: Path) -> None:
        """Print why ``written`` is not published, if it is not, and remove what is left of it."""
        if _first():
            self._print_once(disk.explain("checkpoints", self.scratch, self.bytes, self.failed) if self.failed else "")
            remove(written)
        self.failed = ""
        self._pace()

    def _pace(self) -> None:
        """Choose the interval by what the last checkpoint cost."""
        self.interval = self.fixed or chosen_interval(self.waited, self.writing)

    def _print_once(self, complaint: str) -> None:
        """Print once why no checkpoint is written, and once that they are written again."""
        if complaint and not self.complaint:
            print(f"{complaint}; training goes on without, and tries again every {clock(self.interval)}", flush=True)
        elif self.complaint and not complaint:
            print(f"checkpoints are written again in {self.scratch}", flush=True)
        self.complaint = complaint

    def release(self) -> None:
        """Wait for the background, and restore the signal handlers from before training."""
        if self.background:
            self.background.close()
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.background:
            self.background.cancelled = state.global_step >= state.max_steps  # the model itself is written next
        self._collect()
        self.release()
        if self.stopped and state.global_step < state.max_steps:
            name, kept = signal.Signals(self.stopped).name, sealing.numbered(self.scratch)
            onward = "begins again"
            if kept:
                onward = f"resumes from step {sealing.step_number(kept[0])} (checkpoint in {kept[0]})"
            why = f"{self.complaint}; " if self.complaint else ""
            raise Preempted(f"{name} at step {state.global_step} of {state.max_steps}; {why}the next run {onward}")


def _bytes(model: Module, optimizer: Optimizer | None) -> int:
    """Return the bytes of a checkpoint: the weights, and the states that the optimizer has by now."""
    states = getattr(optimizer, "state", None) or {}
    tensors = [t for state in states.values() if isinstance(state, dict) for t in state.values()]
    counted = [t for t in (*model.parameters(), *tensors) if hasattr(t, "element_size")]
    return sum(t.numel() * t.element_size() for t in counted)


def chosen_interval(waited: float, writing: float) -> float:
    """Return the seconds between checkpoints for which training waits and the background writes so many seconds."""
    return min(LONGEST_SECONDS, max(FIRST_SECONDS, waited / COST_SHARE, writing / WRITING_SHARE))


def _fixed_interval() -> float | None:
    value = os.environ.get("VERDICT_CHECKPOINT_SECONDS", "")
    try:
        return float(value) if value else None
    except ValueError:
        raise UserError(f"VERDICT_CHECKPOINT_SECONDS is {value!r}; it must be a number of seconds.") from None


def latest(scratch: Path) -> Path | None:
    """Return the newest undamaged checkpoint in ``scratch``, the same in all processes; None if there is none."""
    number = 0
    if _first() and (whole := _newest_whole(scratch)):
        number = sealing.step_number(whole)
    (number,) = _agree(number)
    return scratch / f"checkpoint-{number}" if number else None


def _newest_whole(scratch: Path) -> Path | None:
    for folder in sealing.numbered(scratch):
        if not (wrong := sealing.damage(folder)):
            return folder
        print(f"{folder.name} is damaged ({wrong}); trying the one before it", flush=True)
    return None


def _first() -> bool:
    """Return whether this is the first process, or the only one."""
    return not dist.is_initialized() or dist.get_rank() == 0


def _agree(*values: int) -> list[int]:
    """Return the largest of each value over all processes; all call it and wait for each other."""
    if not dist.is_initialized():
        return list(values)
    largest = torch.tensor([0, *values])
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=_cpu_group())
    return largest[1:].tolist()


@functools.cache
def _cpu_group() -> ProcessGroup:
    """Return a group over gloo, in which no process waits for its GPU's queue."""
    return dist.new_group(backend="gloo")
