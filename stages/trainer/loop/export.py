"""Export of the trained model as a plain Hugging Face checkpoint, however it was sharded.

The bytes do not depend on how it was trained: safetensors of one dtype under a plain model's names. Not for checkpoints
to resume from (`checkpoints`).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from stages.contract.process import worker
from stages.trainer.model import models, offload

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer


def release(model: "PreTrainedModel") -> None:
    """Undo `prepare`: make ``model`` a plain transformers model again, to save and to generate."""
    model.__dict__.pop("forward", None)
    model.lm_head.__dict__.pop("forward", None)
    for name in ("attention_backend", "masked", "preference", "distillation"):
        model.__dict__.pop(name, None)
    model.config._attn_implementation = "sdpa"
    offload.take_back(model)


def save_trained(
    trainer: "Trainer", tokenizer: "PreTrainedTokenizerBase", write: Callable[[Callable[[Path], None], int], None],
    dtype: str = "auto",
) -> None:  # fmt: skip
    """Write the trained model and ``tokenizer``; all processes call it and continue when the model is there.

    Args:
        write: called in the first process with a function that saves both to a folder, and the bytes of the weights.
        dtype: see `export.dtype` in params.yaml; auto: that of the model that was loaded, on disk; fp32 for a new one.

    Raises:
        UserError: a weight is not finite.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    weights = _whole(model) if sharded else None
    release(model)
    if trainer.is_deepspeed_enabled:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()  # or the next model that is made, the plain one below, would be divided as well
    if worker.rank() == 0:
        plain = model if weights is None else _plain(model, weights)
        plain.to(_dtype(model, dtype))
        needed = sum(p.numel() * p.element_size() for p in plain.parameters())
        write(partial(models.save_model, plain, tokenizer), needed)
    if dist.is_initialized():
        dist.barrier()


def _dtype(model: "PreTrainedModel", name: str) -> torch.dtype:
    on_disk = getattr(torch, getattr(model, "dtype_on_disk", "float32"))
    return {"auto": on_disk, "fp32": torch.float32, "bf16": torch.bfloat16}[name]


def _whole(model: "PreTrainedModel") -> "dict[str, Tensor]":
    """Return the whole parameters by name, fp32 on the CPU, gathered one at a time; {} on ranks other than 0."""
    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "full_tensor"):
            whole = parameter.full_tensor()
        else:
            from deepspeed.utils import safe_get_full_fp32_param

            whole = safe_get_full_fp32_param(parameter)
        if worker.rank() == 0:
            weights[name] = whole.detach().float().cpu().clone()
        del whole
    return weights


def _plain(model: "PreTrainedModel", weights: "dict[str, Tensor]") -> "PreTrainedModel":
    """Build a transformers model of ``weights`` with the settings of ``model``, whose own parameters are only parts."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.config, attn_implementation="sdpa", dtype=torch.float32)
    if model.config.tie_word_embeddings:  # one parameter, under one of its two names
        weights = weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}
    plain.load_state_dict(weights, assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain
