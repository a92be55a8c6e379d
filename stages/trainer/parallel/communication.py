"""Communication of data-parallel processes: gradients, whole or compressed, or now and then their weights."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.trainer.plan.recipe import Recipe

POWERSGD_RANK = 4  # Vogels et al. 2019, arXiv:1905.13727: rank 4 is theirs for language models
POWERSGD_FROM = 0.1  # share of the steps before which gradients are exchanged whole; torch's docs advise such a start
POWERSGD_LATEST = 1000  # torch's start_powerSGD_iter


def communicate(trainer: Trainer, recipe: Recipe) -> None:
    """Set up the exchange of gradients or weights between processes; call it once, when the trainer is made."""
    if recipe.sharding == "ddp" and recipe.params.local_steps > 1:
        trainer.add_callback(LocalSteps(trainer, recipe.params.local_steps))
    elif recipe.sharding == "ddp" and (register := COMMUNICATION[recipe.params.communication]):
        trainer.add_callback(Compressed(trainer, register))


def _bf16(model: Module, args: TrainingArguments, state: TrainerState) -> None:
    """Halve the gradients' bytes."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    model.register_comm_hook(None, default_hooks.bf16_compress_hook)


def _powersgd(model: Module, args: TrainingArguments, state: TrainerState) -> None:
    """Send two factors of rank POWERSGD_RANK instead of each gradient matrix.

    A gradient M (m x n) is approximated by P Q', with P = M Q made orthogonal and Q = M' P: one step of the power
    iteration, started from the last step's Q, so that the factors follow the gradient's leading directions. What the
    approximation misses is added to the next gradient, so nothing is lost, only late.
    """
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

    start = min(POWERSGD_LATEST, max(2, int(POWERSGD_FROM * state.max_steps)))  # 2: DDP's buckets are final then
    options = powerSGD_hook.PowerSGDState(
        None, matrix_approximation_rank=POWERSGD_RANK, start_powerSGD_iter=start, random_seed=args.seed
    )
    model.register_comm_hook(options, powerSGD_hook.powerSGD_hook)


# name -> function that registers the exchange with DDP's model; None: DDP's own, fp32.
COMMUNICATION: dict[str, Callable[[Module, TrainingArguments, TrainerState], None] | None] = {
    "fp32": None,
    "bf16": _bf16,
    "powersgd": _powersgd,
}


class Compressed(TrainerCallback):
    """Exchange gradients by one of COMMUNICATION. DDP exists only when training begins."""

    def __init__(self, trainer: Trainer, register: Callable[[Module, TrainingArguments, TrainerState], None]) -> None:
        self.trainer, self.register = trainer, register

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.register(self.trainer.model_wrapped, args, state)


class LocalSteps(TrainerCallback):
    """Run local SGD: every process takes ``every`` steps by itself, then all take the mean of their weights.

    They average the optimizer's moments too. With a second moment of its own in each process, local Adam need not
    converge (Chen et al. 2020, arXiv:2009.04765), and only equal moments make a checkpoint of rank 0 one of all.
    torch's PeriodicModelAverager knows neither the moments nor the last step, after which all must be equal.
    """

    def __init__(self, trainer: Trainer, every: int) -> None:
        self.trainer, self.every = trainer, every

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook

        self.trainer.model_wrapped.register_comm_hook(None, noop_hook)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            _average([p.data for p in self.trainer.model.parameters()])
            _average(_moments(self.trainer.optimizer))


def _moments(optimizer: Optimizer) -> list[Tensor]:
    """Return the floating-point states, in an order that is the same in all processes."""
    states = [optimizer.state[p] for group in optimizer.param_groups for p in group["params"] if p in optimizer.state]
    values = [value for state in states for _, value in sorted(state.items())]
    return [v for v in values if isinstance(v, torch.Tensor) and v.is_floating_point()]


def _average(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in place."""
    for tensor in tensors:
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
