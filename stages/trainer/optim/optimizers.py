"""Optimizers: AdamW and its rivals, each from its library, each as one torch Optimizer over a whole model.

schedule_free holds two sets of weights: the loop calls ``optimizer.train()`` before a training step and ``eval()``
before evaluation and before the weights are saved for use; transformers' Trainer omits only the last. Checkpoints are
written in either mode. State dicts hold tensors and plain values only and load with ``weights_only=True``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from stages.contract.errors import UserError
from stages.trainer.optim.groups import EPSILON, parameter_groups, split_by_mup
from stages.trainer.optim.sophia import sophia

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from transformers import PreTrainedModel

    from stages.scaling.mup import Mup
    from stages.scaling.shapes import Shape

PACKAGES = {"adam_mini": "adam-mini==1.1.1", "pytorch_optimizer": "pytorch-optimizer>=4.1,<4.2"}
LION_BETAS = (0.9, 0.99)  # Chen et al. 2023, arXiv:2302.06675: not AdamW's, the second is the momentum's
MUON_MOMENTUM = 0.95  # Jordan et al. 2024, kellerjordan.github.io/posts/muon


class Wanted(NamedTuple):
    """Input of a row's ``build``: the model, its parameters in groups, AdamW's settings."""

    model: "PreTrainedModel | None"  # None: groups alone, on the host
    hidden: list[dict[str, Any]]  # groups of the blocks' matrices: one, with muP one for each rate
    others: list[dict[str, Any]]
    learning_rate: float
    betas: tuple[float, float]

    @property
    def groups(self) -> list[dict[str, Any]]:
        return [*self.hidden, *self.others]


@dataclass(frozen=True)
class OptimizerKind:
    """Optimizer to choose: one row of OPTIMIZERS, and a name in `stages.contract.params.Trainer`.

    Args:
        state_bytes: fp32 state per parameter: of the blocks' matrices; of embeddings, head and norms.
        rate_scale: a good peak learning rate over AdamW's, so that one configured rate serves all.
        takes: the least it must be given of a parameter: flat "pieces" (DeepSpeed's ZeRO, offload), "shards" (FSDP2's,
            which know their place in the whole), or the "whole".
        build: returns a torch Optimizer over the groups.
        width_power: with muP, the rate of the blocks' matrices is width^-width_power; None: not derived.
        adapters: whether it can train LoRA's.
        needs_labels: whether the objective must be the likelihood of labels.
    """

    state_bytes: tuple[float, float]
    rate_scale: float
    takes: Literal["pieces", "shards", "whole"]
    build: Callable[[Wanted], "Optimizer"]
    width_power: float | None = None
    adapters: bool = True
    needs_labels: bool = False

    def bytes_per_parameter(self, shape: "Shape", adapters: bool = False) -> float:
        """Return the bytes of state per trained parameter; a step's temporaries are not counted.

        Args:
            shape: of the model.
            adapters: whether only LoRA's matrices are trained, all of them in the blocks.
        """
        hidden, others = self.state_bytes
        share = 1.0 if adapters else shape.matrix_parameters / shape.parameters
        return share * hidden + (1 - share) * others


def _import(module: str, name: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise UserError(f"optimizer {name!r}: {e}. Install it: pip install '{PACKAGES[module]}'") from None


def _adamw(wanted: Wanted) -> "Optimizer":
    import torch

    return torch.optim.AdamW(wanted.groups, wanted.learning_rate, wanted.betas, fused=True)


def _lion(wanted: Wanted) -> "Optimizer":
    lion = _import("pytorch_optimizer", "lion").Lion(wanted.groups, wanted.learning_rate, LION_BETAS, foreach=True)
    batched = lion._can_use_foreach

    def whole(group: dict[str, Any]) -> bool:  # FSDP's DTensors, which accelerate puts in later, have no _foreach_lerp
        return not any(hasattr(p, "full_tensor") for p in group["params"]) and batched(group)

    lion._can_use_foreach = whole
    return lion


def _muon(wanted: Wanted) -> "Optimizer":
    """Build Muon for the blocks' matrices and AdamW for the rest.

    The momentum of a matrix has a few large singular values, so a plain step moves it in few directions. Muon replaces
    the momentum U S V' by U V', all singular values 1, with five Newton-Schulz iterations: odd polynomials of the
    matrix, products alone, which push every singular value to 1 without a decomposition. Such a step of an m x n matrix
    is scaled by 0.2 sqrt(max(m, n)) to the size of AdamW's (Liu et al. 2025, arXiv:2502.16982, section 2.2), so
    AdamW's rate and decay serve.
    """
    rate = {"lr": wanted.learning_rate}
    muon = [rate | group | {"use_muon": True} for group in wanted.hidden]
    adamw = [rate | group | {"use_muon": False} for group in wanted.others]
    return _import("pytorch_optimizer", "muon").Muon(
        [*muon, *adamw], momentum=MUON_MOMENTUM, use_adjusted_lr=True, adamw_betas=wanted.betas, adamw_eps=EPSILON
    )


def _adam_mini(wanted: Wanted) -> "Optimizer":
    """Build Adam-mini as its authors publish it (Zhang et al. 2024, arXiv:2406.16793).

    It has one second moment for a head of queries or keys, a token, or an output neuron.
    pytorch_optimizer's has one for a whole matrix of the MLP, and all of Adam's for embeddings and head.
    """
    assert wanted.model is not None
    config = wanted.model.config
    decay = {id(p): group["weight_decay"] for group in wanted.groups for p in group["params"]}
    optimizer = _import("adam_mini", "adam_mini").Adam_mini(
        wanted.model.named_parameters(), wanted.learning_rate, wanted.betas, dim=config.hidden_size,
        n_heads=config.num_attention_heads, n_kv_heads=config.num_key_value_heads, verbose=False,
    )  # fmt: skip
    # It assumes heads of dim / n_heads and a flat piece of the parameters on each visible device.
    optimizer.head_numel, optimizer.world_size = config.head_dim * config.hidden_size, 1
    for group in optimizer.param_groups:
        group["weight_decay"] = decay[id(group["params"][0])]
    return optimizer


def _shampoo(wanted: Wanted) -> "Optimizer":
    """Build SOAP for the blocks' matrices (Vyas et al. 2024, arXiv:2409.11321).

    Shampoo averages G G' and G' G of a matrix's gradients G; their eigenvectors approximate the axes along which the
    loss curves most and least. SOAP rotates the gradient into these axes and runs Adam there, so each axis gets its own
    step size. Embeddings and head keep the identity as basis, which makes it Adam.

    Of pytorch_optimizer's others, Shampoo has no grafting, so no rate of AdamW's carries over, and a singular value
    decomposition at every step; ScalableShampoo's state holds objects, which a safe load refuses.
    """
    adam = [group | {"max_precondition_dim": 1} for group in wanted.others]
    return _import("pytorch_optimizer", "shampoo").SOAP([*wanted.hidden, *adam], wanted.learning_rate, wanted.betas)


def _sophia(wanted: Wanted) -> "Optimizer":
    assert wanted.model is not None
    return sophia(_import("pytorch_optimizer", "sophia"), wanted.model, wanted.groups, wanted.learning_rate)


def _schedule_free(wanted: Wanted) -> "Optimizer":
    library = _import("pytorch_optimizer", "schedule_free")
    return library.ScheduleFreeAdamW(wanted.groups, wanted.learning_rate, wanted.betas)


# Lion: "3-10x smaller" (README of google/automl's lion); in language modelling 5 (README of Liuhong99/Sophia). Muon: an
# update has AdamW's size by construction (Liu et al. 2025, arXiv:2502.16982, section 2.2). Adam-mini: AdamW's
# hyperparameters, unchanged (Zhang et al. 2024, arXiv:2406.16793). Sophia: 1 to 1.7 for GPT-2 from 125M to 770M (the
# table of rates in its README). SOAP: Adam in rotated coordinates, and the rotation leaves an update's size as it is
# (arXiv:2409.11321). Schedule-free: "1x-10x larger than with schedule-based approaches" (its README); the default rates
# of both are 2.5 apart.
#
# State: AdamW has two moments, Lion and Muon one, Adam-mini one and a number a row or head, Sophia its momentum, the
# mean Hessian and the latest estimate, Schedule-Free the second weights and a second moment. SOAP adds to two moments
# two m x m and two n x n matrices for each m x n one: 16 bytes a parameter if it is square, 24.3 if it is d x 8/3 d; of
# a Llama's block the former are a third.
#
# muP: a step should change a layer's output by as much at every width. A step of Adam's entries, all of the size of the
# rate, is aligned with the layer's input, so its effect grows with the width: rate / width (arXiv:2203.03466, table 3).
# A step of Muon has equal singular values, which should be sqrt(fan_out / fan_in) (Yang et al. 2023, arXiv:2310.17813)
# and by the factor above are 0.2 sqrt(max(fan_out, fan_in)): rate / sqrt(width). Embedding and head are AdamW's.
OPTIMIZERS = {
    "adamw": OptimizerKind((8.0, 8.0), 1.0, "pieces", _adamw, width_power=1.0),
    "lion": OptimizerKind((4.0, 4.0), 0.2, "pieces", _lion),
    "muon": OptimizerKind((4.0, 8.0), 1.0, "shards", _muon, width_power=0.5),
    "adam_mini": OptimizerKind((4.0, 4.0), 1.0, "shards", _adam_mini, adapters=False),  # it divides weights by heads
    "sophia": OptimizerKind((12.0, 12.0), 1.0, "whole", _sophia, needs_labels=True),
    "shampoo": OptimizerKind((29.6, 8.0), 1.0, "whole", _shampoo, adapters=False),  # 264 bytes at 16 x 512
    "schedule_free": OptimizerKind((8.0, 8.0), 2.5, "shards", _schedule_free),
}


def build_optimizer(
    name: str, model: "PreTrainedModel", learning_rate: float, weight_decay: float, betas: tuple[float, float],
    stochastic_rounding: bool = False, on_host: bool = False, mup: "Mup | None" = None,
) -> "Optimizer":  # fmt: skip
    """Build a torch Optimizer that holds every trainable parameter of ``model`` once.

    Args:
        name: one of OPTIMIZERS.
        model: a transformers causal language model; for "adam_mini" with the names of a Llama's parameters.
        learning_rate: AdamW's peak rate; scaled by the row's `rate_scale`.
        weight_decay: AdamW's; divided by `rate_scale`, which keeps rate x decay, the strength, as Lion's authors
            advise.
        betas: AdamW's, also for those that have its moments. Lion's, Sophia's and Muon's momentum are their papers'.
        stochastic_rounding: "adamw" rounds bf16 weights up or down by chance, with the probability of the distance: an
            update below half a bf16's spacing is lost each time otherwise (Zamirai et al. 2020, arXiv:2010.06192).
        on_host: "adamw" and "lion" step where `stages.trainer.model.offload.keep_on_host` has put the weights.
        mup: the model's parametrization; ``learning_rate`` and ``weight_decay`` are then the base model's.

    Raises:
        UserError: its package is not installed, it cannot take sharded parameters, or it cannot round so.
    """
    kind = OPTIMIZERS[name]
    learning_rate *= kind.rate_scale
    hidden, others = parameter_groups(model, weight_decay / kind.rate_scale)
    if mup:
        split = partial(split_by_mup, model=model, learning_rate=learning_rate, mup=mup, power=width_power(name))
        hidden, others = split(hidden), split(others)
    wanted = Wanted(model, hidden, others, learning_rate, betas)
    if stochastic_rounding:
        if name != "adamw":
            raise UserError(f"trainer.stochastic_rounding: optimizer {name!r} cannot; adamw can.")
        return _import("torchao.optim", name)._AdamW(wanted.groups, learning_rate, betas, bf16_stochastic_round=True)
    if kind.takes == "whole":
        _refuse_sharded(name, wanted.groups)
    if on_host:
        from stages.trainer.model.offload import HostOptimizer

        def step(groups: list[dict[str, Any]]) -> "Optimizer":
            return kind.build(Wanted(None, groups[:1], groups[1:], learning_rate, betas))

        return HostOptimizer(wanted.groups, learning_rate, step)
    return kind.build(wanted)


def width_power(name: str) -> float:
    """Return by which power of a model's width muP lowers the rate of optimizer ``name``.

    Raises:
        UserError: muP is not derived for it.
    """
    power = OPTIMIZERS[name].width_power
    if power is None:
        able = " and ".join(known for known, kind in OPTIMIZERS.items() if kind.width_power)
        raise UserError(f"sizing.parametrization: mup has rates for {able}, and trainer.optimizer is {name}. Use one.")
    return power


def missing(optimizer: "Optimizer", model: "PreTrainedModel") -> list[str]:
    """Return the names of the trainable parameters of ``model`` that ``optimizer`` does not hold and never changes."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]


def _refuse_sharded(name: str, groups: list[dict[str, Any]]) -> None:
    from torch.distributed.tensor import DTensor

    if any(isinstance(p, DTensor) for group in groups for p in group["params"]):
        raise UserError(f"optimizer {name!r} needs whole parameters and these are sharded. Use DDP, or another one.")
