"""muP: sizes and rates of a new model's tensors by its width and depth, so that one learning rate serves all sizes.

With one initialization and one rate for all tensors, the best rate falls as a model gets wider or deeper. In the
maximal update parametrization (Yang et al. 2022, Tensor Programs V, arXiv:2203.03466) it stays, over depths too with
CompleteP (Dey et al. 2025, arXiv:2505.01618, alpha = 1). A checkpoint is a plain Llama: no multiplier is left.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from stages.scaling.shapes import Shape, llama

# The model at which muP is the standard parametrization: `size`'s own shape at about four million parameters.
BASE = llama(vocab_size=64, heads=4, layers=4, head_dim=64, row_tokens=1)


class Factors(NamedTuple):
    """Factors of a tensor over the standard parametrization: its size at the start, its rate, Adam's epsilon."""

    size: float
    rate: float
    epsilon: float


@dataclass(frozen=True)
class Mup:
    """A model's width, depth and head size over the base's; ``tied``: the head is the embedding."""

    width: float
    depth: float
    head: float
    tied: bool

    @classmethod
    def of(cls, shape: Shape, base_width: int) -> "Mup":
        """Return the parametrization of a model of ``shape``."""
        return cls(
            shape.hidden_size / base_width, shape.num_hidden_layers / BASE.num_hidden_layers,
            shape.head_dim / BASE.head_dim, shape.tied,
        )  # fmt: skip

    def factors(self, name: str, width_power: float) -> Factors:
        """Return the factors of the parameter ``name`` of a LlamaForCausalLM.

        Theory has multipliers in the forward pass: 1/width of the logits, 1/depth of a layer's two branches, and of
        attention's scores 1/head instead of 1/sqrt(head). Here they are in a weight. If W serves as cW, then V = cW
        serves as V does, starting c times as large. Its gradient is 1/c of W's. Steps of Adam and Muon do not depend on
        the gradient's size, so the rate becomes c times as large; Adam's epsilon, added to the gradient's size, 1/c.

        Args:
            name: with or without the prefixes of wrappers.
            width_power: the blocks' matrices have rates of width^-width_power, by the optimizer.
        """
        width, depth = self.width, self.depth
        head = self.head**-0.25  # of queries and of keys, whose product is the scores
        inner, rate = 1 / math.sqrt(width), width**-width_power
        scores = Factors(inner * head, rate * head, 1 / (width * depth * head))
        into = Factors(inner, rate, 1 / (width * depth))
        back = Factors(inner / depth, rate / depth, 1 / width)
        gains, ends = Factors(1.0, 1.0, 1 / (width * depth)), Factors(1.0, 1.0, 1 / width)
        logits = Factors(1 / width, 1 / width, 1.0)
        rows = {
            "q_proj": scores, "k_proj": scores, "v_proj": into, "gate_proj": into, "up_proj": into,
            "o_proj": back, "down_proj": back,
            "input_layernorm": gains, "post_attention_layernorm": gains,
            # A shared embedding cannot be smaller for the logits alone; the last norm's gain is instead.
            "embed_tokens": ends, "norm": logits if self.tied else ends, "lm_head": ends if self.tied else logits,
        }  # fmt: skip
        return rows[name.split(".")[-2]]
