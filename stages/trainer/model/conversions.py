"""Conversions of a model before it is trained: number formats by torchao, Liger's Triton kernels, compiled layers.

They happen before any trainer sees the model. accelerate's own fp8 path replaced 13 of 13 linear weights after the
optimizer had collected the old ones, and silently trained none of them.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

from stages.contract.errors import UserError

if TYPE_CHECKING:
    from torch.nn import Linear
    from transformers import PreTrainedModel


def _keep(model: "PreTrainedModel") -> None:
    """Leave ``model`` as it is."""


@dataclass(frozen=True)
class Conversion:
    """Conversion of a model's decoder: one row of FORMATS, KERNELS or COMPILATION.

    Head and embedding are never converted: in fp8 they cost accuracy and gain 1 % (nanochat, dev/LOG.md).

    Args:
        apply: converts the model in place. Raises UserError if a package is missing or the model does not fit.
        gpu: needs a GPU; torchao would emulate its formats on a CPU, slower than fp32.
    """

    apply: Callable[["PreTrainedModel"], None] = _keep
    gpu: bool = False


def _fp8(scales: str, model: "PreTrainedModel") -> None:
    """Multiply in fp8, with one scale per tensor or per row."""
    torchao = _import("torchao.float8")
    config = torchao.Float8LinearConfig.from_recipe_name(scales)
    torchao.convert_to_float8_training(model.model.layers, config=config, module_filter_fn=_divisible)


def _divisible(module: "Linear", name: str) -> bool:
    """Whether cuBLAS takes the layer's fp8 operands, which must be multiples of 16."""
    return module.in_features % 16 == 0 and module.out_features % 16 == 0


def _int8(model: "PreTrainedModel") -> None:
    training = _import("torchao.prototype.quantized_training")
    # Modules are swapped, so that weights stay plain tensors to optimizers and checkpoints.
    config = training.Int8MixedPrecisionTrainingConfig(module_swap=True)
    _import("torchao.quantization").quantize_(model.model.layers, config)


def _liger(model: "PreTrainedModel") -> None:
    """Replace norms, rotary embedding and the gated product by Liger's kernels; the loss is ours."""
    if (kind := model.config.model_type) != "llama":
        raise UserError(f"trainer.kernels: liger replaces parts of a llama, not of a {kind}. Use torch.")
    kernels = _import("liger_kernel.transformers")
    kernels.apply_liger_kernel_to_llama(
        rope=True, swiglu=True, rms_norm=True, cross_entropy=False, fused_linear_cross_entropy=False, model=model
    )


def _compile_layers(model: "PreTrainedModel") -> None:
    """Compile each decoder layer. All layers share one graph, compiled once; a whole model is a new graph per shape.

    Under DDP, dynamo would cut the graph into its buckets of 25 MB. A layer is small enough to overlap with the
    exchange of its neighbors' gradients, and whole, its kernels stay fused.
    """
    import torch

    torch._dynamo.config.optimize_ddp = False
    for part in (*model.model.layers, model.model.norm):
        part.compile(dynamic=False)


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise UserError(f"{name.split('.')[0]} is needed for this precision and cannot be imported: {e}") from None


# Of the matrix products; weights stay fp32. bf16 comes from autocast.
FORMATS = {
    "fp32": Conversion(),
    "bf16": Conversion(),
    "fp8": Conversion(partial(_fp8, "tensorwise"), gpu=True),
    "fp8_rowwise": Conversion(partial(_fp8, "rowwise"), gpu=True),
    "int8": Conversion(_int8, gpu=True),
}
KERNELS = {"torch": Conversion(), "liger": Conversion(_liger, gpu=True)}
COMPILATION = {"none": Conversion(), "layers": Conversion(_compile_layers)}
