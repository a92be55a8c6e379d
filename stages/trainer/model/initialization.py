"""Sizes of a model's weights by muP, over the standard initialization."""

from typing import TYPE_CHECKING

from stages.scaling.mup import Mup

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def rescale(model: "PreTrainedModel", mup: Mup, before: Mup | None = None) -> None:
    """Multiply every parameter of ``model`` by its factor, in place.

    Args:
        model: a LlamaForCausalLM, new, or trained with another depth and copied to this one.
        before: the parametrization that its weights have; None: standard.
    """
    for name, p in model.named_parameters():
        size = mup.factors(name, 1.0).size / (before.factors(name, 1.0).size if before else 1.0)
        p.data.mul_(size)
