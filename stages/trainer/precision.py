"""Number formats: fp32 weights with bf16, fp8 or int8 products, by torchao; and Liger's Triton kernels.

The conversion happens here, before any trainer sees the model. accelerate's own fp8 path replaced 13 of 13 linear
weights after the optimizer had been told of the old ones, and trained none of them without a word.
"""

from stages.contract.errors import UserError

FP8 = {"fp8": "tensorwise", "fp8_rowwise": "rowwise"}
FORMATS = ("fp32", "bf16", *FP8, "int8")


def convert(model, precision: str) -> None:
    """Let the linear layers of ``model``'s decoder compute in ``precision`` (one of FORMATS), in place.

    The head and the embedding stay as they are: in fp8 they cost accuracy and gain 1 % (nanochat, dev/LOG.md).

    Raises:
        UserError: torchao is not installed.
    """
    if precision in FP8:
        torchao = _import("torchao.float8")
        config = torchao.Float8LinearConfig.from_recipe_name(FP8[precision])
        torchao.convert_to_float8_training(model.model.layers, config=config, module_filter_fn=_divisible)
    elif precision == "int8":
        training = _import("torchao.prototype.quantized_training")
        # Modules are swapped, so that weights stay plain tensors to optimizers and checkpoints.
        config = training.Int8MixedPrecisionTrainingConfig(module_swap=True)
        _import("torchao.quantization").quantize_(model.model.layers, config)


def liger(model) -> None:
    """Replace norms, rotary embedding and the gated product by Liger's kernels; the loss is ours.

    Raises:
        UserError: the model is no Llama, or Liger is not installed.
    """
    if (kind := model.config.model_type) != "llama":
        raise UserError(f"trainer.kernels: liger replaces parts of a llama, not of a {kind}. Use torch.")
    kernels = _import("liger_kernel.transformers")
    kernels.apply_liger_kernel_to_llama(
        rope=True, swiglu=True, rms_norm=True, cross_entropy=False, fused_linear_cross_entropy=False, model=model
    )


def _divisible(module, name) -> bool:
    """cuBLAS wants fp8 operands in multiples of 16."""
    return module.in_features % 16 == 0 and module.out_features % 16 == 0


def _import(name: str):
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise UserError(f"{name.split('.')[0]} is needed for this precision and cannot be imported: {e}") from None
