"""Sharding of a training over the devices of one machine, as arguments of the Trainer and of accelerate.

Not for starting processes (`launching`) nor for writing the whole model (`stages.trainer.loop.export`).
"""

import math
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from stages.contract import UserError
from stages.contract.process import worker
from stages.trainer.plan.hardware import host_memory
from stages.trainer.plan.recipe import Recipe

if TYPE_CHECKING:
    from torch.nn import Module

PINNED_SHARE = 0.8  # of the host's memory, for weights, gradients and states of an offloaded model
NVME_BUFFERS = 5  # of pinned memory between disk and device; DeepSpeed's default


def sharding_arguments(recipe: Recipe) -> dict[str, Any]:
    """Return keyword arguments of transformers.TrainingArguments for the recipe's sharding and offload.

    Call it in the worker that trains: DeepSpeed on a CPU is set up here.

    Raises:
        UserError: DeepSpeed is not installed, or the offload is not possible.
    """
    return SHARDINGS[recipe.sharding](recipe)


def _whole(recipe: Recipe) -> dict[str, Any]:
    """Leave the model whole on every device."""
    return {}


def _fsdp(recipe: Recipe) -> dict[str, Any]:
    """Shard by FSDP2 around every decoder layer (the model's _no_split_modules), embedding and head.

    Each device holds a part of every weight. A layer's weights are gathered right before its forward pass and freed
    after it; the backward pass gathers them again. Where the memory holds all gathered weights in the compute dtype,
    they are kept instead, which saves the second gathering.
    """
    gathered = recipe.memory.get("weights", 0) * recipe.processes / (2 if recipe.bf16 else 1)
    fits = _held(recipe, replicas(recipe)) + gathered <= recipe.room
    config = {
        "version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "reshard_after_forward": not fits,
        # Every process writes its share; another number of processes can read it.
        "state_dict_type": "SHARDED_STATE_DICT",
    }  # fmt: skip
    return {"fsdp": True, "fsdp_config": config}


def replicas(recipe: Recipe) -> int:
    """Return how often FSDP holds the model: once on each machine where a machine has room for it, or once in all.

    Machines are linked a tenth as fast as the GPUs of one. Whole on each machine, weights are gathered there and only
    the sums of gradients go between machines (hybrid sharding, Zhao et al. 2023, arXiv:2304.11277).
    """
    own = int(os.environ.get("LOCAL_WORLD_SIZE", recipe.processes))
    machines, rest = divmod(recipe.processes, own)
    return 1 if rest or own == 1 or _held(recipe, machines) > recipe.room else machines


def _held(recipe: Recipe, machines: int) -> float:
    """Return the bytes on a device if each of several machines holds the whole model."""
    shared = 2 * recipe.memory.get("weights", 0) + recipe.memory.get("optimizer", 0)  # 2: and gradients
    return sum(recipe.memory.values()) + (machines - 1) * shared


def _zero(stage: int, recipe: Recipe) -> dict[str, Any]:
    """Shard by DeepSpeed: states (stage 1), gradients too (2), weights too (3).

    "auto" is filled in by transformers; the rest is stated, whatever its default.
    """
    _check_deepspeed(recipe)
    if recipe.device == "cpu":
        _deepspeed_on_cpu()
    states: dict[str, Any] = {
        "stage": stage, "overlap_comm": recipe.device == "cuda", "contiguous_gradients": True, "reduce_scatter": True,
    }  # fmt: skip
    if stage == 3:
        states["stage3_gather_16bit_weights_on_model_save"] = True
    if offload := OFFLOADS[recipe.offload]:
        states["offload_optimizer"] = offload(recipe)
        if stage == 3:
            states["offload_param"] = offload(recipe)
    config = {
        "zero_optimization": states,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        # Sums of many gradients in bf16 lose the small ones.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        # Our optimizers are given to DeepSpeed, not named to it; their own CPU kernels update offloaded weights.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    return {"deepspeed": config | ({"bf16": {"enabled": True}} if recipe.bf16 else {})}


def _to_host(recipe: Recipe) -> dict[str, Any]:
    return {"device": "cpu", "pin_memory": recipe.device == "cuda" and _pinned_fits(recipe)}


def _to_disk(recipe: Recipe) -> dict[str, Any]:
    folder = os.environ.get("VERDICT_NVME") or str(worker.scratch() / "nvme")
    return {
        "device": "nvme", "nvme_path": folder, "pin_memory": recipe.device == "cuda", "buffer_count": NVME_BUFFERS,
    }  # fmt: skip


SHARDINGS: dict[str, Callable[[Recipe], dict[str, Any]]] = {
    "none": _whole,
    "ddp": _whole,
    "fsdp": _fsdp,
    "zero1": partial(_zero, 1),
    "zero2": partial(_zero, 2),
    "zero3": partial(_zero, 3),
}
# DeepSpeed's; on one device, "cpu" is `stages.trainer.model.offload`.
OFFLOADS: dict[str, Callable[[Recipe], dict[str, Any]] | None] = {"none": None, "cpu": _to_host, "nvme": _to_disk}


def _pinned_fits(recipe: Recipe) -> bool:
    """Return whether the host can hold everything with weights and gradients pinned.

    torch rounds pinned memory up to a power of two, so 25 GiB of a 7B model's weights become 32.
    """
    parameters = recipe.memory["weights"] / 2  # the device holds them in two bytes
    pinned = 2 ** math.ceil(math.log2(4 * parameters))
    return 2 * pinned + 8 * parameters < PINNED_SHARE * host_memory()


def _check_deepspeed(recipe: Recipe) -> None:
    try:
        from deepspeed.ops.op_builder import AsyncIOBuilder
    except ImportError as e:
        raise UserError(f"trainer.sharding: {recipe.sharding} needs DeepSpeed, which cannot be imported: {e}") from None
    if recipe.offload != "nvme":
        return
    if recipe.sharding != "zero3":
        raise UserError(f"trainer.offload: nvme needs trainer.sharding zero3, not {recipe.sharding}.")
    if not AsyncIOBuilder().is_compatible():
        raise UserError("trainer.offload: nvme needs libaio (Debian: libaio-dev), which DeepSpeed does not find.")


def _deepspeed_on_cpu() -> None:
    """Start gloo before DeepSpeed looks: it would take a world of one for its own and fail in zero.Init.

    Its own reduction in shared memory is omitted: a minute and a half of compiling for what gloo does as well in tests.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__ = deepspeed.ops.__compatible_ops__ | {"deepspeed_shm_comm": False}
    deepspeed.init_distributed("gloo")


def accelerated(kwargs: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Return ``kwargs`` of accelerate.Accelerator, as transformers makes them, adapted to the recipe's sharding."""
    if recipe.sharding == "ddp":
        for handler in kwargs["kwargs_handlers"]:  # one, DDP's; gradients lie in its buckets and are not copied there
            handler.gradient_as_bucket_view = True
    if recipe.sharding != "fsdp":
        return kwargs
    if recipe.device == "cpu":
        _fsdp_on_cpu()
    if (machines := replicas(recipe)) > 1:
        from accelerate.parallelism_config import ParallelismConfig

        sizes = {"dp_replicate_size": machines, "dp_shard_size": recipe.processes // machines}
        kwargs["parallelism_config"] = ParallelismConfig(**sizes)
    if recipe.bf16:
        import torch
        from torch.distributed.fsdp import MixedPrecisionPolicy

        # accelerate's own would add gradients up in bf16 and round the loss to it.
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        kwargs["fsdp_plugin"].mixed_precision_policy = policy
    return kwargs


def _fsdp_on_cpu() -> None:
    """Let accelerate shard on CPUs, where it silently runs DDP (1.15, state.py); gloo's processes serve as GPUs."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def assert_sharded(model: "Module") -> None:
    """Raise RuntimeError unless every parameter of ``model`` is a DTensor of which this process holds a part."""
    from torch.distributed.tensor import DTensor, Shard

    for name, parameter in model.named_parameters():
        if not isinstance(parameter, DTensor):
            raise RuntimeError(f"FSDP was asked for and {name} is whole on every device: accelerate did not shard it")
        if not any(isinstance(placement, Shard) for placement in parameter.placements):
            raise RuntimeError(f"FSDP was asked for and {name} is placed as {parameter.placements}")
