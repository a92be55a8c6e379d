"""Activation checkpointing: recompute activations in the backward pass instead of keeping them.

It wraps a layer's forward and not its call, so that a compiled layer contains its recomputation and the partitioner
plans both (torchtitan does the same with module wrappers, which change the weights' names).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

if TYPE_CHECKING:
    from torch._ops import OperatorBase
    from torch.utils.checkpoint import SelectiveCheckpointContext
    from transformers import PreTrainedModel

Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]  # of the forward pass and its repetition


class Mode(NamedTuple):
    """Recomputation to choose: one row of MODES.

    ``time`` is a step's time over that of a step without (measured: benchmarks.trainer memory, benchmarks.posttraining
    dpo). ``options`` are keyword arguments of torch's checkpoint; None: nothing is recomputed.
    """

    time: float
    options: dict[str, Any] | None


def _selective() -> Contexts:
    """Keep attention and every second matrix product: they are the slowest to recompute."""
    products = {False: 0, True: 0}  # seen in the forward pass, and in its repetition

    def policy(
        context: "SelectiveCheckpointContext", op: "OperatorBase", *args: Any, **kwargs: Any
    ) -> CheckpointPolicy:
        if op in _matrix_products():
            products[context.is_recompute] += 1
            keep = products[context.is_recompute] % 2
        else:
            keep = op in _attention()
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def _matrix_products() -> "tuple[OperatorBase, ...]":
    aten = torch.ops.aten
    return (aten.mm.default, aten.addmm.default, aten._scaled_mm.default, aten.linear.default)


def _attention() -> "tuple[OperatorBase, ...]":
    aten = torch.ops.aten
    return (
        aten._scaled_dot_product_cudnn_attention.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.higher_order.flex_attention,
        *((torch.ops.torch_attn._varlen_attn.default,) if hasattr(torch.ops.torch_attn, "_varlen_attn") else ()),
        *((torch.ops.verdict.flash4.default,) if hasattr(torch.ops.verdict, "flash4") else ()),
    )


# From the least recomputation to the most: "full" keeps a layer's input alone.
MODES = {"none": Mode(1.0, None), "selective": Mode(1.2, {"context_fn": _selective}), "full": Mode(1.3, {})}


def checkpoint_layers(model: "PreTrainedModel", mode: str) -> None:
    """Recompute every decoder layer of ``model`` in the backward pass, in place, by one of MODES."""
    if (options := MODES[mode].options) is None:
        return
    for layer in model.model.layers:
        layer.forward = partial(_recomputed, layer.forward, options)


def _recomputed(
    forward: Callable[..., torch.Tensor], options: dict[str, Any], *args: Any, **kwargs: Any
) -> torch.Tensor:
    return checkpoint(forward, *args, use_reentrant=False, **options, **kwargs)
