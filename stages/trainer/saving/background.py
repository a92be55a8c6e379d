"""Checkpoints written in the background: training waits for the copy to the host, a thread writes the files.

A thread is enough. torch.save, safetensors, sha256 and fsync release the GIL: another thread never waited longer than
it does for a core. DeepSpeed writes its checkpoints itself, while training waits.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from stages.contract import UserError
from stages.trainer.plan.hardware import free_host_memory
from stages.trainer.saving.copies import HostCopies, copy_sizes

if TYPE_CHECKING:
    from transformers import Trainer

ROOM_SHARE = 0.8  # of the host's free memory, that copies may take
FSDP_MODEL, FSDP_OPTIMIZER = "pytorch_model_fsdp_0", "optimizer_0"  # accelerate's folders
State = dict[str, Any]  # "model": its state_dict, "optimizer": its own


@dataclass(frozen=True)
class Ended:
    """End of work in the background: what it was for (None: the memory), its seconds, and its error."""

    folder: Path | None
    seconds: float
    error: BaseException | None


class Background:
    """Writer of one checkpoint at a time, for a trainer of the class `SavesInBackground`.

    Args:
        trainer: whose weights and optimizer states are copied.
    """

    def __init__(self, trainer: "Trainer") -> None:
        self.trainer, self.sharded = trainer, trainer.is_fsdp_enabled
        self.copies = HostCopies(pinned=trainer.args.device.type == "cuda")
        # Threads of all processes agree on files in a group of their own, while training uses the others.
        self.group = dist.new_group(backend="gloo") if self.sharded else None
        # A new thread's device is the first GPU, on which a process that trains on another would take memory.
        self.pool = ThreadPoolExecutor(1, "checkpoint", _use, (trainer.args.device,))
        self.prepared = False  # memory for copies is being allocated, or there
        self.active = False  # the next checkpoint is written here
        self.cancelled = False  # what is being written is not published
        self.write: Callable[[], None] | None = None  # the files of the last copy
        self.work: Future[None] | None = None
        self.folder: Path | None = None  # that is being written
        self.began = 0.0

    def prepare(self) -> str:
        """Begin to allocate the memory for copies; return "", or why there is no room for it."""
        self.prepared = True
        if not self._copies():
            return ""
        sizes = copy_sizes(self._state())
        needed = sum(sizes) * (int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if self.sharded else 1)  # of this machine
        if needed > ROOM_SHARE * (free := free_host_memory()):
            return f"a copy takes {needed / 2**30:.1f} GiB of the host's memory, of which {free / 2**30:.1f} are free"
        self._start(None, lambda: self.copies.allocate(sizes))
        return ""

    def copy(self, folder: Path) -> None:
        """Copy weights and optimizer states, to be written to ``folder`` by `publish`."""
        if self._copies():
            state, write = self.copies.take(self._state()), self._write_shards if self.sharded else _write_whole
            self.write = lambda: write(state, folder)

    def publish(self, folder: Path, then: Callable[[Path], None]) -> None:
        """Begin to write what was copied to ``folder``, and call ``then`` with it when that is done."""
        if (write := self.write) is None:
            return

        def work() -> None:
            write()
            if not self.cancelled:
                then(folder)

        self.write = None
        self._start(folder, work)

    def busy(self) -> bool:
        """Return whether the thread works."""
        return self.work is not None and not self.work.done()

    def ended(self) -> Ended | None:
        """Return, once, how the thread's last work ended; wait for it if it has not."""
        if self.work is None:
            return None
        error, self.work = self.work.exception(), None
        return Ended(self.folder, time.monotonic() - self.began, error)

    def close(self) -> None:
        """Wait for the thread and give the memory back: the host may need it to put the trained model together."""
        self.active = False
        self.pool.shutdown()
        self.write, self.copies.places = None, []
        if self.copies.pinned:
            torch._C._host_emptyCache()  # or torch keeps the pages locked for another tensor

    def _start(self, folder: Path | None, work: Callable[[], None]) -> None:
        self.folder, self.began = folder, time.monotonic()
        self.work = self.pool.submit(work)

    def _copies(self) -> bool:
        """Return whether this process writes weights: each its shards, or the first one all."""
        return self.sharded or self.trainer.args.should_save

    def _state(self) -> State:
        model, optimizer = self.trainer.model, self.trainer.optimizer
        if not self.sharded:
            return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

        return {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}

    def _write_shards(self, state: State, folder: Path) -> None:
        """Write this process's shards as accelerate does (1.15, fsdp_utils.py); all processes end together."""
        from torch.distributed import checkpoint
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            for name, part in ((FSDP_MODEL, "model"), (FSDP_OPTIMIZER, "optimizer")):
                # It makes the folder, and tells the others if it cannot: they would wait for this process.
                writer = checkpoint.FileSystemWriter(folder / name)
                checkpoint.save({part: state[part]}, storage_writer=writer, process_group=self.group)
        except CheckpointException as e:  # of all processes; the cause is in the first that failed
            raise next(iter(e.failures.values()))[0] from e


def _use(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _write_whole(state: State, folder: Path) -> None:
    """Write ``state`` as transformers does: one file for the weights, of tied ones under the first name, and one."""
    from safetensors.torch import save_file

    names = {id(tensor): name for name, tensor in reversed(state["model"].items())}
    weights = {name: state["model"][name].contiguous() for name in reversed(names.values())}
    save_file(weights, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
    torch.save(state["optimizer"], folder / OPTIMIZER_NAME)


if TYPE_CHECKING:
    from transformers import Trainer as _Mixed
else:
    _Mixed = object


class SavesInBackground(_Mixed):
    """Mixed in before transformers.Trainer: with ``background``, a checkpoint's large files are only copied."""

    background: Background | None = None

    def _save(self, output_dir: str | None = None, state_dict: State | None = None) -> None:
        super()._save(output_dir, {} if self._copies() else state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.background is None or not self._copies():
            super()._save_optimizer_and_scheduler(output_dir)
            return
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        self.background.copy(Path(output_dir))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _copies(self) -> bool:
        return self.background is not None and self.background.active


def background_writer(trainer: "Trainer") -> Background | None:
    """Return the writer for ``trainer``; None where training waits instead: by default, everywhere but on a GPU.

    On a CPU the thread would take the cores that train.
    """
    value = os.environ.get("VERDICT_CHECKPOINT_BACKGROUND", "")
    if value not in ("", "0", "1"):
        raise UserError(f"VERDICT_CHECKPOINT_BACKGROUND is {value!r}; it must be 0 or 1.")
    wanted = value == "1" or (not value and trainer.args.device.type == "cuda")
    able = isinstance(trainer, SavesInBackground) and not trainer.is_deepspeed_enabled
    trainer.background = Background(trainer) if wanted and able else None
    return trainer.background
