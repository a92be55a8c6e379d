"""Training divided among the devices of one machine: what the Trainer must be told, and the model put together again.

A checkpoint of the whole model does not depend on how it was trained: fp32 safetensors under a plain model's names.
"""

import math
import os
from pathlib import Path

from stages.contract import UserError, worker
from stages.trainer import models
from stages.trainer.launching import launch
from stages.trainer.recipe import Recipe

__all__ = ["accelerated", "arguments", "assert_sharded", "in_worker", "launch", "publish", "rank", "save"]

ZERO_STAGE = {"zero1": 1, "zero2": 2, "zero3": 3}
PINNED_SHARE = 0.8  # of the host's memory, for weights, gradients and states of an offloaded model
NVME_BUFFERS = 5  # of pinned memory between disk and device; DeepSpeed's default


def in_worker() -> bool:
    """Whether this is one of the processes that `launch` started."""
    return worker.is_worker()


def rank() -> int:
    return worker.rank()


def arguments(recipe: Recipe) -> dict:
    """Keyword arguments of transformers.TrainingArguments for the recipe's sharding and offload; not to be called
    before a worker needs them, since DeepSpeed on a CPU is set up here.

    Raises:
        UserError: DeepSpeed is not installed, or what is offloaded cannot be.
    """
    if recipe.sharding == "fsdp":
        return {"fsdp": True, "fsdp_config": _fsdp(recipe)}
    if recipe.sharding in ZERO_STAGE:
        _check_deepspeed(recipe)
        if recipe.device == "cpu":
            _deepspeed_on_cpu()
        return {"deepspeed": _zero(recipe)}
    return {}


def _fsdp(recipe: Recipe) -> dict:
    """FSDP2 around every decoder layer (the model's _no_split_modules), embedding and head."""
    # All layers' gathered weights in the compute dtype; where there is room, the backward pass need not gather again.
    gathered = recipe.memory.get("weights", 0) * recipe.processes / (2 if recipe.bf16 else 1)
    fits = sum(recipe.memory.values()) + gathered <= recipe.room
    return {
        "version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "reshard_after_forward": not fits,
        # Every process writes its share; another number of processes can read it.
        "state_dict_type": "SHARDED_STATE_DICT",
    }  # fmt: skip


def _zero(recipe: Recipe) -> dict:
    """DeepSpeed's configuration. "auto" is filled in by transformers; the rest is stated, whatever its default."""
    stage = ZERO_STAGE[recipe.sharding]
    states = {
        "stage": stage, "overlap_comm": recipe.device == "cuda", "contiguous_gradients": True, "reduce_scatter": True,
    }  # fmt: skip
    if stage == 3:
        states["stage3_gather_16bit_weights_on_model_save"] = True
    if recipe.offload != "none":
        states["offload_optimizer"] = _offload(recipe)
        if stage == 3:
            states["offload_param"] = _offload(recipe)
    config = {
        "zero_optimization": states,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        # Sums of many gradients in bf16 lose the small ones.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        # Our optimizers are given to DeepSpeed, not named to it; their own CPU kernels update what is offloaded.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    return config | ({"bf16": {"enabled": True}} if recipe.bf16 else {})


def _offload(recipe: Recipe) -> dict:
    if recipe.offload == "cpu":
        return {"device": "cpu", "pin_memory": recipe.device == "cuda" and _pinned_fits(recipe)}
    folder = os.environ.get("VERDICT_NVME") or str(worker.scratch() / "nvme")
    return {
        "device": "nvme", "nvme_path": folder, "pin_memory": recipe.device == "cuda", "buffer_count": NVME_BUFFERS,
    }  # fmt: skip


def _pinned_fits(recipe: Recipe) -> bool:
    """Whether the host can hold everything with weights and gradients pinned: torch rounds pinned memory up to a power
    of two, so 25 GiB of a 7B model's weights become 32."""
    parameters = recipe.memory["weights"] / 2  # the device holds them in two bytes
    pinned = 2 ** math.ceil(math.log2(4 * parameters))
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2 * pinned + 8 * parameters < PINNED_SHARE * host


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
    """Gloo before DeepSpeed looks: it would take a world of one for its own and fail in zero.Init. Its own reduction
    in shared memory is left out, a minute and a half of compiling for what gloo does as well in tests."""
    import deepspeed

    deepspeed.ops.__compatible_ops__ = deepspeed.ops.__compatible_ops__ | {"deepspeed_shm_comm": False}
    deepspeed.init_distributed("gloo")


def accelerated(kwargs: dict, recipe: Recipe) -> dict:
    """``kwargs`` of accelerate.Accelerator as transformers makes them, for the recipe's sharding."""
    if recipe.sharding != "fsdp":
        return kwargs
    if recipe.device == "cpu":
        _fsdp_on_cpu()
    if recipe.bf16:
        import torch
        from torch.distributed.fsdp import MixedPrecisionPolicy

        # accelerate's own would add gradients up in bf16 and round the loss to it.
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        kwargs["fsdp_plugin"].mixed_precision_policy = policy
    return kwargs


def _fsdp_on_cpu() -> None:
    """accelerate shards on accelerators only; on CPUs it silently runs DDP (1.15, state.py). For what it does from
    here on, gloo's processes are as good as GPUs."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def assert_sharded(model) -> None:
    """Raises RuntimeError unless every parameter of ``model`` is a DTensor of which this process holds a part."""
    from torch.distributed.tensor import DTensor, Shard

    for name, parameter in model.named_parameters():
        if not isinstance(parameter, DTensor):
            raise RuntimeError(f"FSDP was asked for and {name} is whole on every device: accelerate did not shard it")
        if not any(isinstance(placement, Shard) for placement in parameter.placements):
            raise RuntimeError(f"FSDP was asked for and {name} is placed as {parameter.placements}")


def save(trainer, tokenizer, folder: Path) -> None:
    """Write the trained model to ``folder`` as a plain Hugging Face checkpoint in fp32; all processes call it and go
    on when it is there.

    Raises:
        UserError: a weight is not finite.
    """
    from stages.trainer.causal import release

    model = trainer.accelerator.unwrap_model(trainer.model)
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    weights = _whole(model) if sharded else None
    release(model)
    if trainer.is_deepspeed_enabled:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()  # or the next model that is made, the plain one below, would be divided as well
    if rank() == 0:
        models.save(_plain(model, weights) if sharded else model, tokenizer, folder)
    _barrier()


def _whole(model) -> dict:
    """name -> fp32 tensor on the CPU, of all parameters, on rank 0; put together one at a time. {} elsewhere."""
    weights = {}
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "full_tensor"):
            whole = parameter.full_tensor()
        else:
            from deepspeed.utils import safe_get_full_fp32_param

            whole = safe_get_full_fp32_param(parameter)
        if rank() == 0:
            weights[name] = whole.detach().float().cpu().clone()
        del whole
    return weights


def _plain(model, weights: dict):
    """A transformers model of ``weights`` with the settings of ``model``, whose own parameters are only parts."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.config, attn_implementation="sdpa", dtype=torch.float32)
    if model.config.tie_word_embeddings:  # one parameter, under one of its two names
        weights = weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}
    plain.load_state_dict(weights, assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


def publish(written: Path, target: Path) -> None:
    """Move a finished folder into place; all processes call it and go on when it is there."""
    _barrier()
    if rank() == 0:
        written.rename(target)
    _barrier()


def _barrier() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
