"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): products of two thin matrices, added to frozen weights.

Fine-tuning changes a weight matrix by a matrix of low rank, to a good approximation. Only its two factors are trained,
so gradients and optimizer states are small. In the end they are added to the weights, which gives a plain checkpoint.
"""

from typing import TYPE_CHECKING

from stages.scaling.shapes import Shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SCALE = 2.0  # alpha over rank


def parameters(shape: Shape, rank: int) -> int:
    """Return the number of parameters of all adapters of a model of ``shape``."""
    d, attention, ff = shape.hidden_size, shape.query_width, shape.intermediate_size
    return shape.num_hidden_layers * rank * (2 * (d + attention) + 2 * (d + shape.key_value_width) + 3 * (d + ff))


def inject(model: "PreTrainedModel", rank: int) -> None:
    """Add adapters to every projection of ``model``'s decoder, in place, and freeze the rest."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=SCALE * rank, lora_dropout=0.0, bias="none", target_modules=TARGETS)
    inject_adapter_in_model(config, model)


def merge(model: "PreTrainedModel") -> None:
    """Add each adapter to its frozen weight and remove the adapter, in place."""
    from peft.tuners.lora import LoraLayer

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                child.merge()
                setattr(parent, name, child.get_base_layer())
    model.requires_grad_(True)
    model.__dict__.pop("peft_config", None)
