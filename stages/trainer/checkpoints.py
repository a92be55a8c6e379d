"""Checkpoints that survive a kill at any moment.

The Trainer writes checkpoint-N into <scratch>/partial. When it is whole, a manifest with the size and sha256 of
every file is added, everything is synced to disk, and one rename publishes it as <scratch>/checkpoint-N. So what
bears that name is complete; what a resume finds is verified once more, and an older one is taken if it is damaged
(transformers takes the highest number unchecked).

Where several processes train together, each writes its part into the same folder; the first one's clock says when,
a signal to any of them stops all, and the first one publishes and looks for what there is.
"""

import functools
import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

from transformers import TrainerCallback

from stages.contract.errors import Preempted, UserError

KEEP = 2
FIRST_SECONDS = 10.0  # after which the first checkpoint is written and its cost is known
LONGEST_SECONDS = 900.0  # at most this much work is lost with the machine
COST_SHARE = 0.01  # of the time, that checkpoints may take


class Checkpoints(TrainerCallback):
    """Saves by the clock, publishes what was saved, and turns SIGTERM and SIGINT into a last checkpoint.

    The interval is VERDICT_CHECKPOINT_SECONDS, or chosen so that saving takes 1 % of the time, at most every ten
    seconds and at least every fifteen minutes. It bears no identity: a resumed run ends in the same bytes.

    Args:
        every: steps between those at which all processes hold the same weights (local SGD); only there it saves.
    """

    def __init__(self, scratch: Path, every: int = 1):
        self.scratch, self.every = scratch, every
        self.fixed = _fixed_interval()
        self.interval = self.fixed or FIRST_SECONDS
        self.saved_at = time.monotonic()
        self.asked_at = 0.0
        self.stopped = 0  # the signal that came
        self.published: Path | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if _first():
            shutil.rmtree(args.output_dir, ignore_errors=True)
        _agree()  # nobody writes there before it is gone
        self.saved_at = time.monotonic()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, number, frame):
        self.stopped = number

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every and state.global_step < state.max_steps:
            return
        now = time.monotonic()
        due, stopped = _agree(_first() and now - self.saved_at >= self.interval, self.stopped)
        if stopped or due:
            self.asked_at = now
            control.should_save = state.global_step < state.max_steps
        if stopped:
            self.stopped = stopped
            control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        _agree()  # all have written their parts
        written = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.published = self.scratch / written.name
        if _first():
            publish(written, self.scratch)
            for old in _numbered(self.scratch)[KEEP:]:
                shutil.rmtree(old)
        _agree()
        self.saved_at = time.monotonic()
        cost = self.saved_at - self.asked_at
        self.interval = self.fixed or min(LONGEST_SECONDS, max(FIRST_SECONDS, cost / COST_SHARE))

    def on_train_end(self, args, state, control, **kwargs):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if self.stopped and state.global_step < state.max_steps:
            name = signal.Signals(self.stopped).name
            raise Preempted(
                f"{name} at step {state.global_step} of {state.max_steps}; the next run goes on from there "
                f"(checkpoint in {self.published})"
            )


def _fixed_interval() -> float | None:
    value = os.environ.get("VERDICT_CHECKPOINT_SECONDS", "")
    try:
        return float(value) if value else None
    except ValueError:
        raise UserError(f"VERDICT_CHECKPOINT_SECONDS is {value!r}; it must be a number of seconds.") from None


def publish(written: Path, scratch: Path) -> Path:
    """Seal the checkpoint folder ``written`` and move it to ``scratch`` in one rename."""
    manifest = {}
    for file in sorted(p for p in written.rglob("*") if p.is_file()):
        manifest[str(file.relative_to(written))] = [file.stat().st_size, _sha256(file)]
        _sync(file)
    (written / "manifest.json").write_text(json.dumps(manifest, indent=1))
    _sync(written / "manifest.json")
    target = scratch / written.name
    shutil.rmtree(target, ignore_errors=True)
    written.rename(target)
    _sync(scratch)
    return target


def latest(scratch: Path) -> Path | None:
    """The newest checkpoint in ``scratch`` whose every file is as it was written; the same in all processes."""
    number = 0
    if _first():
        found = _newest_whole(scratch)
        number = int(found.name.split("-")[1]) if found else 0
    (number,) = _agree(number)
    return scratch / f"checkpoint-{number}" if number else None


def _newest_whole(scratch: Path) -> Path | None:
    for folder in _numbered(scratch):
        damage = _damage(folder)
        if not damage:
            return folder
        print(f"{folder.name} is damaged ({damage}); trying the one before it", flush=True)
    return None


def _damage(folder: Path) -> str:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return "no readable manifest"
    for name, (size, sha256) in manifest.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size or _sha256(file) != sha256:
            return f"{name} differs from its manifest"
    return ""


def _numbered(scratch: Path) -> list[Path]:
    """checkpoint-N folders, highest N first."""
    return sorted(scratch.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True)


def _first() -> bool:
    """Whether this is the only process, or the one that speaks for all."""
    import torch.distributed as dist

    return not dist.is_initialized() or dist.get_rank() == 0


def _agree(*values: int) -> list[int]:
    """Of each value the largest that any process has; all processes call it, and wait for each other."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        return list(values)
    largest = torch.tensor([0, *values])
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=_cpu_group())
    return largest[1:].tolist()


@functools.cache
def _cpu_group():
    """Over gloo, so that nobody waits for what is queued on a GPU."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo")


def _sha256(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
