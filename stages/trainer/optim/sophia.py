"""Sophia-G (Liu et al. 2023, arXiv:2305.14342): steps clipped by an estimate of the loss's curvature."""

import functools
from types import ModuleType
from typing import TYPE_CHECKING, Any

from stages.contract.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import BaseModelOutputWithPast

# The authors' for GPT-2, github.com/Liuhong99/Sophia.
SOPHIA_BETAS = (0.965, 0.99)
SOPHIA_INTERVAL = 10  # steps between estimates of the Hessian
SOPHIA_RHO = 0.05
SAMPLED_LOGITS = 2**28  # elements of the logits from which labels are drawn at a time


def sophia(
    library: ModuleType, model: "PreTrainedModel", groups: list[dict[str, Any]], learning_rate: float
) -> "Optimizer":
    """Build Sophia-G: SophiaH of ``library`` (pytorch_optimizer) with the paper's other estimator.

    SophiaH differentiates the gradients once more. That needs backward(create_graph=True), which the Trainer does not
    do (step() raises), and which no fused attention can. The Gauss-Newton-Bartlett estimator needs first derivatives
    only. An update is clip(m / max(rho h, eps), 1): where the loss curves, Newton's step; where it is flat and Newton's
    step would explode, a step of the size of the rate. With the clip at 1, as in the authors' code, the rate is like
    AdamW's.
    """
    optimizer = library.SophiaH(groups, learning_rate, SOPHIA_BETAS, p=1.0, eps=1e-15, update_period=SOPHIA_INTERVAL)
    optimizer.compute_hutchinson_hessian = functools.partial(_gauss_newton_bartlett, model, _latest_pass(model))
    return optimizer


def _latest_pass(model: "PreTrainedModel") -> dict[str, Any]:
    """Return a dict in which hooks keep the arguments and last hidden states [B, T, D] of the latest training pass."""
    seen: dict[str, Any] = {}

    def keep_arguments(module: "Module", args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module.training:
            seen["arguments"] = kwargs

    def keep_hidden(module: "Module", args: tuple[Any, ...], output: "BaseModelOutputWithPast") -> None:
        if module.training:
            seen["hidden"] = output.last_hidden_state.detach()

    model.register_forward_pre_hook(keep_arguments, with_kwargs=True)
    model.base_model.register_forward_hook(keep_hidden)
    return seen


def _gauss_newton_bartlett(
    model: "PreTrainedModel", seen: dict[str, Any], param_groups: list[dict[str, Any]],
    state: "dict[Tensor, dict[str, Tensor]]", **_: Any,
) -> None:  # fmt: skip
    """Write rho h to ``state``, where h estimates the diagonal of the loss's Gauss-Newton matrix.

    h = n g^2, with g the gradient of the mean loss over n labels that the model draws itself (Sophia's algorithm 2).
    For such labels the expected gradient is zero, so its square is a variance: Fisher's information, which for a
    likelihood equals the Gauss-Newton matrix. It is taken of the latest micro-batch, and averaged over all processes.

    Raises:
        UserError: the latest forward pass had no labels: its objective is not the likelihood of tokens.
    """
    import torch

    arguments = {name: value for name, value in seen["arguments"].items() if name != "num_items_in_batch"}
    if arguments.get("labels") is None:
        raise UserError("optimizer 'sophia' needs the cross-entropy of labels; this objective has none. Use another.")
    labels = _draw_labels(seen["hidden"], model.get_output_embeddings().weight, arguments["labels"])
    params = [p for group in param_groups for p in group["params"] if p.grad is not None]
    with torch.enable_grad():
        gradients = torch.autograd.grad(model(**arguments | {"labels": labels}).loss, params)
    counted = (labels[:, 1:] >= 0).sum()
    for p, gradient in zip(params, gradients, strict=True):
        estimate = state[p]["hessian"].copy_(SOPHIA_RHO * counted * gradient.square())
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(estimate)
            estimate.div_(torch.distributed.get_world_size())


def _draw_labels(hidden: "Tensor", weight: "Tensor", labels: "Tensor") -> "Tensor":
    """Draw labels from the model's own predictions where ``labels`` count: int64 [B, T], -100 elsewhere.

    Args:
        hidden: [B, T, D] that the head reads; position t predicts labels[t + 1].
        weight: [V, D] of the head.
    """
    import torch

    rows = max(1, SAMPLED_LOGITS // len(weight))
    logits = (part @ weight.to(part.dtype).t() for part in hidden.flatten(0, 1).split(rows))
    drawn = torch.cat([torch.multinomial(part.float().softmax(-1), 1) for part in logits]).view(labels.shape)
    return torch.where(labels >= 0, drawn.roll(1, dims=1), labels)
