"""Memory of a training step, in bytes."""

from stages.scaling.shapes import Shape


def states(shape: Shape) -> int:
    """fp32 weights, gradients and AdamW's two moments: 16 bytes a parameter."""
    return 16 * shape.parameters


def activations_per_token(shape: Shape, element: int) -> int:
    """What the backward pass needs of one token without checkpointing, ``element`` bytes an activation.

    A block keeps its two norm inputs and outputs, q, k, v and the attention output, and four tensors of the
    gated MLP; attention itself is recomputed (FlashAttention). The head keeps logits and their gradient in fp32.
    """
    d = shape.hidden_size
    attention = 4 * shape.num_attention_heads * shape.head_dim
    block = (5 * d + attention + 4 * shape.intermediate_size) * element
    return shape.num_hidden_layers * block + 2 * 4 * shape.vocab_size


def estimates(shape: Shape) -> dict[str, int]:
    return {
        "states_bytes": states(shape),
        "activation_bytes_per_token_fp32": activations_per_token(shape, 4),
        "activation_bytes_per_token_bf16": activations_per_token(shape, 2),
    }
