"""Progressive training: fewer layers and shorter rows at first, where a token costs less.

Depth: the trained layers are stacked on top of themselves (Gong et al. 2019, "Efficient training of BERT by
progressively stacking"; Du et al. 2024, arXiv:2405.15319, who start with fresh optimizer states). It works because
neighboring layers of a trained model do similar work: a copy is a better start than random weights.
Length: rows are cut into parts, the same tokens per step (Li et al. 2021, arXiv:2108.06084).
"""

import copy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GROWN_AT = 0.5  # share of the steps after which the model has its full depth, and rows their full length


def start_layers(layers: int, share: float) -> int:
    """Return the layers of the model at the start."""
    return max(1, min(layers, round(layers * share)))


def grown_at(steps: int) -> int:
    """Return the step from which the model has its full depth."""
    return max(1, int(steps * GROWN_AT))


def row_parts(step: int, steps: int, row_tokens: int, share: float) -> int:
    """Return the parts a row is cut into at ``step``: about 1/``share`` at first, halved evenly until half-way, then 1.

    They are powers of two that divide the row, so that few shapes are compiled.
    """
    parts = 1
    while 2 * parts * share <= 1 and row_tokens % (2 * parts) == 0:
        parts *= 2
    halvings = parts.bit_length() - 1
    done = int(step / grown_at(steps) * halvings)
    return max(1, parts >> done)


def deepen(model: "PreTrainedModel", layers: int) -> "PreTrainedModel":
    """Copy ``model``, a LlamaForCausalLM, to a depth of ``layers``: layer i copies its layer i modulo its depth."""
    depth = model.config.num_hidden_layers
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    grown = type(model)(config)
    weights = model.state_dict()

    def source(name: str) -> str:
        parts = name.split(".")
        if parts[:2] == ["model", "layers"]:
            parts[2] = str(int(parts[2]) % depth)
        return ".".join(parts)

    with torch.no_grad():
        grown.load_state_dict({name: weights[source(name)] for name in grown.state_dict()})
    return grown
