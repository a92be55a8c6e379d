"""AdamW and those that would replace it, each from its library, each as one torch Optimizer over a whole model.

What they need of the training loop, all of which transformers' Trainer does unless it says otherwise:

* schedule_free holds two sets of weights: ``optimizer.train()`` before a forward pass in training and
  ``optimizer.eval()`` before evaluation. The Trainer leaves out the one after the last step: call ``eval()`` before
  the weights are saved for use. Checkpoints to go on from are written in either mode.
* sophia runs the model again every tenth step, in ``step()``.
* sophia and shampoo take whole parameters: one device, or DDP. FSDP2's are refused.
* DeepSpeed's ZeRO hands over flat pieces of parameters, which only adamw and lion treat as they would the whole.

State dicts hold tensors and plain values only and load with ``weights_only=True``.
"""

import functools

from stages.contract.errors import UserError

PACKAGES = {"adam_mini": "adam-mini==1.1.1", "pytorch_optimizer": "pytorch-optimizer>=4.1,<4.2"}

# Bytes of fp32 state a parameter: (of the blocks' matrices, of embeddings, head and norms). AdamW has two moments,
# Lion and Muon one, Adam-mini one and a number a row or head, Sophia its momentum, the mean Hessian and the latest
# estimate, Schedule-Free the second weights and a second moment. SOAP adds to two moments two m x m and two n x n
# matrices for each m x n one: 16 bytes a parameter if it is square, 24.3 if it is d x 8/3 d; of a Llama's block the
# former are a third.
STATE_BYTES = {
    "adamw": (8.0, 8.0),
    "lion": (4.0, 4.0),
    "muon": (4.0, 8.0),
    "adam_mini": (4.0, 4.0),
    "sophia": (12.0, 12.0),
    "shampoo": (29.6, 8.0),
    "schedule_free": (8.0, 8.0),
}
NAMES = tuple(STATE_BYTES)

# A good peak rate over AdamW's.
RATE_SCALE = {
    "adamw": 1.0,
    # "3-10x smaller" (README of google/automl's lion); in language modelling 5 (README of Liuhong99/Sophia).
    "lion": 0.2,
    # An update has AdamW's size by construction: Liu et al. 2025, arXiv:2502.16982, section 2.2.
    "muon": 1.0,
    # AdamW's hyperparameters, unchanged: Zhang et al. 2024, arXiv:2406.16793.
    "adam_mini": 1.0,
    # 1 to 1.7 for GPT-2 from 125M to 770M: the table of rates in its README.
    "sophia": 1.0,
    # Adam in rotated coordinates: the rotation leaves an update's size as it is (arXiv:2409.11321).
    "shampoo": 1.0,
    # "1x-10x larger than with schedule-based approaches" (its README); the default rates of both are 2.5 apart.
    "schedule_free": 2.5,
}

LION_BETAS = (0.9, 0.99)  # Chen et al. 2023, arXiv:2302.06675: not AdamW's, the second is the momentum's
MUON_MOMENTUM = 0.95  # Jordan et al. 2024, kellerjordan.github.io/posts/muon
# The authors' for GPT-2, github.com/Liuhong99/Sophia.
SOPHIA_BETAS = (0.965, 0.99)
SOPHIA_INTERVAL = 10  # steps between estimates of the Hessian
SOPHIA_RHO = 0.05
SAMPLED_LOGITS = 2**28  # elements of the logits from which labels are drawn at a time


def build(
    name: str, model, learning_rate: float, weight_decay: float, betas: tuple[float, float], fused: bool,
    stochastic_rounding: bool = False, on_host: bool = False,
):  # fmt: skip
    """A torch.optim.Optimizer that holds every trainable parameter of ``model`` once.

    Args:
        name: one of NAMES.
        model: a transformers causal language model; for "adam_mini" with the names of a Llama's parameters.
        learning_rate: the peak rate of this optimizer: AdamW's times `rate_scale`.
        weight_decay: AdamW's. Another's is this over `rate_scale`, which keeps rate x decay, the strength, as Lion's
            authors advise.
        betas: AdamW's, also for those that have its moments. Lion's, Sophia's and Muon's momentum are their papers'.
        fused: "adamw" updates all parameters in one kernel, "lion" in a few; sharded parameters have none for it.
        stochastic_rounding: "adamw" rounds its update of bf16 weights up or down by chance, as an update a bf16
            cannot show would otherwise be lost each time (Zamirai et al. 2020, arXiv:2010.06192).
        on_host: "adamw" and "lion" step where `stages.trainer.offload.keep_on_host` has put the weights.

    Raises:
        UserError: no optimizer has that name, its package is not installed, it cannot take sharded parameters, or it
            cannot round so.
    """
    decay = weight_decay / rate_scale(name)
    hidden, others = _groups(model, decay)
    groups = [hidden, *others]
    if stochastic_rounding:
        if name != "adamw":
            raise UserError(f"trainer.stochastic_rounding: optimizer {name!r} cannot; adamw can.")
        return _import("torchao.optim", name)._AdamW(groups, learning_rate, betas, bf16_stochastic_round=True)
    if on_host:
        from stages.trainer.offload import HostOptimizer

        return HostOptimizer(groups, learning_rate, lambda group: _plain(name, group, learning_rate, betas, True))
    match name:
        case "adamw" | "lion":
            return _plain(name, groups, learning_rate, betas, fused)
        case "muon":
            return _muon(hidden, others, learning_rate, betas)
        case "adam_mini":
            return _adam_mini(model, groups, learning_rate, betas)
        case "sophia":
            return _sophia(model, groups, learning_rate)
        case "shampoo":
            return _shampoo(hidden, others, learning_rate, betas)
        case "schedule_free":
            return _import("pytorch_optimizer", name).ScheduleFreeAdamW(groups, learning_rate, betas)


def _plain(name: str, groups: list[dict], learning_rate: float, betas: tuple[float, float], fused: bool):
    """Those that treat every number alike, whatever tensor it lies in."""
    import torch

    if name == "adamw":
        return torch.optim.AdamW(groups, learning_rate, betas, fused=fused)
    return _import("pytorch_optimizer", name).Lion(groups, learning_rate, LION_BETAS, foreach=fused)


def missing(optimizer, model) -> list[str]:
    """Names of the trainable parameters of ``model`` that ``optimizer`` does not hold, and so never changes."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]


def bytes_per_parameter(name: str, hidden_share: float = 1.0) -> float:
    """Bytes of optimizer state a parameter, for fp32 weights. A step's temporaries are not counted.

    Args:
        hidden_share: share of the parameters that are matrices of the blocks; the rest are embeddings, head and norms.

    Raises:
        UserError: no optimizer has that name.
    """
    hidden, others = STATE_BYTES[_known(name)]
    return hidden_share * hidden + (1 - hidden_share) * others


def rate_scale(name: str) -> float:
    """A good peak learning rate over AdamW's, so that one configured rate serves all.

    Raises:
        UserError: no optimizer has that name.
    """
    return RATE_SCALE[_known(name)]


def _known(name: str) -> str:
    if name not in NAMES:
        raise UserError(f"no optimizer is called {name!r}; there are {', '.join(NAMES)}.")
    return name


def _import(module: str, name: str):
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise UserError(f"optimizer {name!r}: {e}. Install it: pip install '{PACKAGES[module]}'") from None


def _refuse_sharded(name: str, *groups: dict) -> None:
    from torch.distributed.tensor import DTensor

    if any(isinstance(p, DTensor) for group in groups for p in group["params"]):
        raise UserError(f"optimizer {name!r} needs whole parameters and these are sharded. Use DDP, or another one.")


def _groups(model, weight_decay: float) -> tuple[dict, list[dict]]:
    """(the group of the blocks' matrices, the groups of all else), trainable parameters only.

    Matrices decay, norms and biases do not, and neither do embeddings: without it their norms settle by themselves
    (OLMo 2, arXiv:2501.00656; SmolLM3). The head does, as in OLMo-core, also where it is the embedding.
    """
    import torch

    head = id(model.get_output_embeddings().weight)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)} - {head}
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trainable if p.ndim >= 2 and id(p) not in embeddings]
    rest = [p for p in trainable if p.ndim < 2 or id(p) in embeddings]
    hidden = {"params": [p for p in matrices if id(p) != head], "weight_decay": weight_decay}
    others = [
        {"params": [p for p in matrices if id(p) == head], "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return hidden, [group for group in others if group["params"]]


def _muon(hidden: dict, others: list[dict], learning_rate: float, betas: tuple[float, float]):
    """Muon for the blocks' matrices, AdamW for the rest, with updates of AdamW's size: 0.2 sqrt(max(m, n)) times the
    orthogonal matrix (Liu et al. 2025, arXiv:2502.16982, section 2.2)."""
    muon = hidden | {"use_muon": True, "lr": learning_rate}
    adamw = [group | {"use_muon": False, "lr": learning_rate} for group in others]
    return _import("pytorch_optimizer", "muon").Muon(
        [muon, *adamw], momentum=MUON_MOMENTUM, use_adjusted_lr=True, adamw_betas=betas, adamw_eps=1e-8
    )


def _adam_mini(model, groups: list[dict], learning_rate: float, betas: tuple[float, float]):
    """Adam-mini as its authors publish it: one second moment for a head of queries or keys, a token, or an output
    neuron (Zhang et al. 2024, arXiv:2406.16793). pytorch_optimizer's has one for a whole matrix of the MLP, and all
    of Adam's for embeddings and head."""
    config = model.config
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    optimizer = _import("adam_mini", "adam_mini").Adam_mini(
        model.named_parameters(), learning_rate, betas, dim=config.hidden_size, n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads, verbose=False,
    )  # fmt: skip
    # It takes heads to be dim / n_heads wide, and each visible device to hold a flat piece of the parameters.
    optimizer.head_numel, optimizer.world_size = config.head_dim * config.hidden_size, 1
    for group in optimizer.param_groups:
        group["weight_decay"] = decay[id(group["params"][0])]
    return optimizer


def _shampoo(hidden: dict, others: list[dict], learning_rate: float, betas: tuple[float, float]):
    """SOAP, Shampoo with Adam in the eigenbasis of its preconditioners (Vyas et al. 2024, arXiv:2409.11321), for the
    blocks' matrices; embeddings and head keep the identity as basis, which makes it Adam.

    Of pytorch_optimizer's others, Shampoo has no grafting, so that no rate of AdamW's carries over, and a singular
    value decomposition at every step; ScalableShampoo's state holds objects, which a safe load refuses.
    """
    _refuse_sharded("shampoo", hidden)
    adam = [group | {"max_precondition_dim": 1} for group in others]
    return _import("pytorch_optimizer", "shampoo").SOAP([hidden, *adam], learning_rate, betas)


def _sophia(model, groups: list[dict], learning_rate: float):
    """Sophia-G (Liu et al. 2023, arXiv:2305.14342): SophiaH of the library with the paper's other estimator.

    SophiaH differentiates the gradients once more. That needs backward(create_graph=True), which the Trainer does not
    do (step() raises), and which no fused attention can. The Gauss-Newton-Bartlett estimator needs first derivatives.
    An update is clip(m / max(rho h, eps), 1), the clip at 1 as in the authors' code, so the rate is like AdamW's.
    """
    _refuse_sharded("sophia", *groups)
    optimizer = _import("pytorch_optimizer", "sophia").SophiaH(
        groups, learning_rate, SOPHIA_BETAS, p=1.0, eps=1e-15, update_period=SOPHIA_INTERVAL
    )
    optimizer.compute_hutchinson_hessian = functools.partial(_gauss_newton_bartlett, model, _latest_pass(model))
    return optimizer


def _latest_pass(model) -> dict:
    """The keyword arguments and the last hidden states [B, T, D] of the latest forward pass in training, kept up to
    date by hooks."""
    seen = {}

    def keep_arguments(module, args, kwargs):
        if module.training:
            seen["arguments"] = kwargs

    def keep_hidden(module, args, output):
        if module.training:
            seen["hidden"] = output.last_hidden_state.detach()

    model.register_forward_pre_hook(keep_arguments, with_kwargs=True)
    model.base_model.register_forward_hook(keep_hidden)
    return seen


def _gauss_newton_bartlett(model, seen: dict, param_groups: list[dict], state: dict, **_) -> None:
    """Write rho h to ``state``, where h estimates the diagonal of the loss's Gauss-Newton matrix: n g^2, with g the
    gradient of the mean loss over n labels that the model draws itself (Sophia's algorithm 2). Of the latest
    micro-batch; over all processes the mean.

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


def _draw_labels(hidden, weight, labels):
    """Labels from the model's own predictions where ``labels`` count: int64 [B, T], -100 elsewhere.

    Args:
        hidden: [B, T, D] that the head reads; position t predicts labels[t + 1].
        weight: [V, D] of the head.
    """
    import torch

    rows = max(1, SAMPLED_LOGITS // len(weight))
    logits = (part @ weight.to(part.dtype).t() for part in hidden.flatten(0, 1).split(rows))
    drawn = torch.cat([torch.multinomial(part.float().softmax(-1), 1) for part in logits]).view(labels.shape)
    return torch.where(labels >= 0, drawn.roll(1, dims=1), labels)
