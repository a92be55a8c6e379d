"""What data-parallel processes tell each other: gradients, whole or compressed, or now and then their weights."""

from transformers import TrainerCallback

from stages.trainer.recipe import Recipe

POWERSGD_RANK = 4  # Vogels et al. 2019, arXiv:1905.13727: rank 4 is theirs for language models
POWERSGD_FROM = 0.1  # share of the steps before which gradients are exchanged whole; torch's docs advise such a start
POWERSGD_LATEST = 1000  # torch's start_powerSGD_iter


def communicate(trainer, recipe: Recipe) -> None:
    """Let ``trainer``'s processes exchange what the recipe says; call it once, when the trainer is made.

    Args:
        recipe: communication "bf16" halves the gradients' bytes; "powersgd" sends factors of rank POWERSGD_RANK.
            With local_steps above 1 no gradient is exchanged at all.
    """
    if recipe.sharding == "ddp" and recipe.local_steps > 1:
        trainer.add_callback(LocalSteps(trainer, recipe.local_steps))
    elif recipe.sharding == "ddp" and recipe.communication != "fp32":
        trainer.add_callback(Compressed(trainer, recipe.communication))


class Compressed(TrainerCallback):
    """Gradients by one of torch's communication hooks. DDP exists only when training begins."""

    def __init__(self, trainer, communication: str):
        self.trainer, self.communication = trainer, communication

    def on_train_begin(self, args, state, control, **kwargs):
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

        model = self.trainer.model_wrapped
        if self.communication == "bf16":
            model.register_comm_hook(None, default_hooks.bf16_compress_hook)
            return
        start = min(POWERSGD_LATEST, max(2, int(POWERSGD_FROM * state.max_steps)))  # 2: DDP's buckets are final then
        options = powerSGD_hook.PowerSGDState(
            None, matrix_approximation_rank=POWERSGD_RANK, start_powerSGD_iter=start, random_seed=args.seed
        )
        model.register_comm_hook(options, powerSGD_hook.powerSGD_hook)


class LocalSteps(TrainerCallback):
    """Local SGD: every process takes ``every`` steps by itself, then all take the mean of their weights.

    Of the optimizer's moments too: with each its own second moment, local Adam need not converge (Chen et al. 2020,
    arXiv:2009.04765); and then a checkpoint of rank 0 is one of all, at these steps.
    torch's PeriodicModelAverager knows neither the moments nor the last step, after which all must be equal.
    """

    def __init__(self, trainer, every: int):
        self.trainer, self.every = trainer, every

    def on_train_begin(self, args, state, control, **kwargs):
        from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook

        self.trainer.model_wrapped.register_comm_hook(None, noop_hook)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            _average([p.data for p in self.trainer.model.parameters()])
            _average(_moments(self.trainer.optimizer))


def _moments(optimizer) -> list:
    """Floating-point states, in an order that is the same in all processes."""
    import torch

    states = [optimizer.state[p] for group in optimizer.param_groups for p in group["params"] if p in optimizer.state]
    values = [value for state in states for _, value in sorted(state.items())]
    return [v for v in values if isinstance(v, torch.Tensor) and v.is_floating_point()]


def _average(tensors: list) -> None:
    """Replace each tensor by its mean over all processes, in place."""
    import torch.distributed as dist

    for tensor in tensors:
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
