"""Resume of a checkpoint that another sharding wrote: whole weights in shards, or shards put together.

A number of processes bears no identity, so a run may go on with another one and with what `sharding: auto` then
chooses. FSDP reads its own shards for any number of processes. DeepSpeed's files are read by DeepSpeed alone.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Module
from torch.optim import Optimizer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from stages.contract import UserError
from stages.trainer.saving.background import FSDP_MODEL, FSDP_OPTIMIZER

if TYPE_CHECKING:
    from transformers import Trainer as _Mixed
else:
    _Mixed = object


class ResumesAnySharding(_Mixed):
    """Mixed in before transformers.Trainer, which resumes only from a checkpoint of its own sharding."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        sharded = (folder / FSDP_MODEL).is_dir()
        if sharded == self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        elif sharded:
            _join_weights(model or self.model, folder / FSDP_MODEL)
        else:
            _divide_weights(model or self.model, folder / SAFE_WEIGHTS_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        folder = Path(checkpoint or "")
        sharded = (folder / FSDP_OPTIMIZER).is_dir()
        if checkpoint is None or self.is_deepspeed_enabled or sharded == self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        if sharded:
            _join_states(self.model, self.optimizer, folder / FSDP_OPTIMIZER)
        else:
            _divide_states(self.model, self.optimizer, folder / OPTIMIZER_NAME)
        self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))


def refuse_other_writer(folder: Path, deepspeed: bool) -> None:
    """Raise UserError if DeepSpeed wrote the checkpoint in ``folder`` and does not resume it, or the other way round.

    Without DeepSpeed's states training would silently begin anew.
    """
    written = next(folder.glob("global_step*"), None) is not None
    if written != deepspeed:
        writer = "written by DeepSpeed" if written else "not written by DeepSpeed, which resumes now"
        raise UserError(
            f"{folder} was {writer}. Resume with as many processes as before (VERDICT_GPUS), or remove it to train "
            "from the beginning."
        )


def _read(state: dict[str, Any], folder: Path) -> None:
    """Replace the values of ``state`` by those in ``folder``, put together from all shards."""
    from torch.distributed import checkpoint

    checkpoint.load(state, storage_reader=checkpoint.FileSystemReader(folder), no_dist=True)


def _join_weights(model: Module, folder: Path) -> None:
    state = {"model": dict(model.state_dict())}
    _read(state, folder)
    model.load_state_dict(state["model"])


def _join_states(model: Module, optimizer: Optimizer, folder: Path) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    state = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    _read(state, folder)
    set_optimizer_state_dict(model, optimizer, state["optimizer"])


def _divide_weights(model: Module, file: Path) -> None:
    from safetensors.torch import load_file
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    options = StateDictOptions(full_state_dict=True, strict=False)  # of tied weights the file has one
    set_model_state_dict(model, load_file(file), options=options)


def _divide_states(model: Module, optimizer: Optimizer, file: Path) -> None:
    """Load whole states, whose keys are numbers in the order of the parameters, into shards, whose keys are names."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    saved = torch.load(file, map_location="cpu", weights_only=True)
    groups = [
        group | {"params": names["params"]}
        for group, names in zip(
            saved["param_groups"], get_optimizer_state_dict(model, optimizer)["param_groups"], strict=True
        )
    ]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    names = [name for group in groups for name in group["params"]]
    states = {name: saved["state"][number] for number, name in zip(numbers, names, strict=True)}
    options = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(model, optimizer, {"state": states, "param_groups": groups}, options=options)
