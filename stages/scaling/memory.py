"""Memory of a training step on one device, in bytes, before anything is allocated.

The peak is at the end of the forward pass: weights and optimizer states are there, gradients only of an earlier
micro-batch, and every token holds its activations for the backward pass. Coefficients of a compiled layer count
the tensors that inductor keeps of a Llama block; benchmarks/trainer.py compares the sums with measured peaks.
"""

from stages.scaling.shapes import Shape

CHUNK_LOGITS = 2**28  # elements of the logits that are in memory at a time: stages.trainer.model.loss


def step(
    shape: Shape, tokens: int, *, precision: str = "bf16", compiled: bool = True, checkpointing: str = "none",
    optimizer_bytes: float = 8.0, shards: int = 1, offload: str = "", trained: int | None = None,
    teacher: Shape | None = None, accumulated: bool = False, buckets: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Return the peak of a step with micro-batches of ``tokens`` tokens, by use of the memory.

    Args:
        optimizer_bytes: bytes of states per parameter (AdamW: two fp32 moments).
        shards: devices that weights, gradients and states are divided among (FSDP, ZeRO-3).
        offload: place of fp32 weights and optimizer states: "host", its memory by `stages.trainer.model.offload`;
            "deepspeed", its memory or disk by DeepSpeed; "", the device.
        trained: parameters that have a gradient and states, the head's not among them; None: all have.
        teacher: the model that is learned from, if there is one.
        accumulated: a step has several micro-batches, whose gradients are summed.
        buckets: gradients lie in DDP's buckets, which stay from step to step.
    """
    changed = shape.parameters if trained is None else trained
    element = 4 if precision == "fp32" else 2
    weights = element * shape.parameters if offload else 4 * shape.parameters / shards
    if offload == "host":  # embedding and head stay as they are
        weights += (4 - element) * shape.embedding_parameters * (1 if shape.tied else 2)
    states = 0.0 if offload else optimizer_bytes * changed / shards
    layer = tokens * element * activation_elements(shape, precision, compiled)
    kept = tokens * element * kept_elements(shape, checkpointing, precision, compiled)
    # Recomputed activations exist for one layer at a time.
    activations = shape.num_hidden_layers * kept + (layer if checkpointing != "none" else 0)
    ends = tokens * element * 4 * shape.hidden_size  # embedding, last norm, hidden states and their gradient
    logits = min(CHUNK_LOGITS, tokens * shape.vocab_size) * (2 * element + (0 if compiled else 8))
    # The head's gradient, formed in the forward pass, and its last product.
    head = 8 * shape.embedding_parameters if trained is None else 0
    gradients = (element if offload == "deepspeed" else 4) * changed / shards
    # A compiled layer keeps its weights in bf16 for its backward pass.
    copied = precision == "bf16" and compiled and checkpointing == "none" and not offload
    copies = 2 * shape.block_parameters if copied else 0
    # Gradients grow while activations go; at the end of the backward pass they are all that is left.
    forward = activations + ends + logits + head + copies + (gradients if accumulated or buckets else 0)
    working = max(forward, gradients + ends)
    shares = {"weights": weights, "optimizer": states, "activations": activations, "working": working - activations}
    if teacher:
        shares["teacher"] = frozen(teacher, precision) + _taught(teacher, tokens, element, compiled, working)
    return shares


def frozen(teacher: Shape, precision: str) -> float:
    """Return the bytes of a model that is only read; it is whole on every device."""
    return (4 if precision == "fp32" else 2) * teacher.parameters


def _taught(teacher: Shape, tokens: int, element: int, compiled: bool, student: float) -> float:
    """Return the bytes of the teacher's activations on top of the ``student``'s.

    They are the input of the teacher's head and its logits; or, if that is more, the excess of the teacher's forward
    pass, during which the student holds nothing yet.
    """
    logits = min(CHUNK_LOGITS, tokens * teacher.vocab_size) * (element + (0 if compiled else 12))
    alone = tokens * element * (3 * teacher.hidden_size + 3 * teacher.intermediate_size)
    return max(tokens * element * teacher.hidden_size + logits, alone - student)


def host(shape: Shape, offload: str, accumulated: bool, optimizer_bytes: float = 8.0) -> float:
    """Return the bytes of an offloaded model in the host's memory, over all processes: fp32 weights and states.

    DeepSpeed keeps fp32 gradients and a bf16 copy of the weights there too (stage_1_and_2.py,
    param_buffer_of_bit16_for_cpu_offload_groups); where a step has several micro-batches (``accumulated``), also
    their sum (accumulated_grads_in_cpu).
    """
    deepspeed = (6 + (4 if accumulated else 0)) if offload == "deepspeed" else 0
    return (4 + optimizer_bytes + deepspeed) * shape.parameters


def activation_elements(shape: Shape, precision: str, compiled: bool) -> float:
    """Return the elements that a token keeps in one layer without checkpointing, in units of the compute dtype.

    Compiled: input and middle of the residual stream, both norms' outputs, q, k, v and the attention's output, and the
    gated product's three tensors. fp8 keeps the products' inputs in one byte. Eager also keeps the norms' and the
    rotary embedding's intermediate results, in fp32.
    """
    d, attention, ff = shape.hidden_size, shape.query_width, shape.intermediate_size
    if not compiled:
        return 14 * d + 9 * attention + 4 * ff
    if precision.startswith("fp8"):
        return 2.4 * d + 4 * attention + 2 * ff
    return 4 * d + 4 * attention + 3 * ff


def kept_elements(shape: Shape, checkpointing: str, precision: str, compiled: bool) -> float:
    """Return the elements that a token keeps in one layer from its forward to its backward pass."""
    d, attention, ff = shape.hidden_size, shape.query_width, shape.intermediate_size
    if checkpointing == "full":
        return d
    if checkpointing == "selective":  # attention, and of q, k, v, o, gate, up, down every second
        return d + 2.7 * attention + ff
    return activation_elements(shape, precision, compiled)
