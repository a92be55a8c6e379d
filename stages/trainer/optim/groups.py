"""Parameter groups: tensors of a model that share a rate, a weight decay and an epsilon."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.scaling.mup import Factors, Mup

EPSILON = 1e-8  # of Adam's denominator


def parameter_groups(
    model: "PreTrainedModel", weight_decay: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the groups of the blocks' matrices and of the rest, trainable parameters only.

    Weight decay pulls a matrix back to zero, which limits its scale and with it how far a step of fixed size turns its
    output. Norms and biases have a scale of their own to learn, so they do not decay. Neither do embeddings: without
    decay their norms settle by themselves (OLMo 2, arXiv:2501.00656; SmolLM3). The head does, as in OLMo-core, also
    where it is the embedding.
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
    return [hidden], [group for group in others if group["params"]]


def split_by_mup(
    groups: list[dict[str, Any]], model: "PreTrainedModel", learning_rate: float, mup: "Mup", power: float
) -> list[dict[str, Any]]:
    """Split ``groups`` by muP's factors; at the base model all are 1, and the groups stay as they are.

    Weight decay acts with the rate. Divided by the rate's factor, it pulls equally at every width (arXiv:2505.01618).

    Args:
        groups: of `parameter_groups`.
        model: a LlamaForCausalLM, whose parameters they have.
        learning_rate: the base model's.
        mup: the model's parametrization.
        power: the optimizer's `width_power`.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    split: list[dict[str, Any]] = []
    for group in groups:
        parts: dict[Factors, list[Any]] = {}
        for p in group["params"]:
            parts.setdefault(mup.factors(names[id(p)], power), []).append(p)
        split += [
            {
                "params": params, "weight_decay": group["weight_decay"] / factors.rate,
                "lr": learning_rate * factors.rate, "eps": EPSILON * factors.epsilon,
            }
            for factors, params in parts.items()
        ]  # fmt: skip
    return split
