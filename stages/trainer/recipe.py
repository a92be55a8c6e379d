"""How a model is trained on the hardware at hand: every choice with its reason.

The batch in tokens is identity and comes from the plan or from params.yaml; how it is cut into micro-batches
depends on the machine and is decided here.
"""

import os
from dataclasses import dataclass

from stages.contract.errors import UserError

MICRO_BATCH_TOKENS_CPU = 3072  # larger ones fall out of the processor's caches: 2,560 were 1.2x faster than 5,120
MEMORY_SHARE = 0.8  # for states and activations together
FLATTENED_TOKENS = 16384  # a dense mask over so many is 256 MiB


@dataclass(frozen=True)
class Hardware:
    device: str  # "cuda" or "cpu"
    name: str
    memory: int  # bytes in all: what is free now would make the micro-batch, and so rounding, a matter of luck
    bf16: bool


@dataclass(frozen=True)
class Recipe:
    device: str
    precision: str  # "bf16" (autocast over fp32 weights) or "fp32"
    attention: str  # a transformers attn_implementation
    micro_batch: int  # rows
    accumulation: int  # micro-batches in an optimizer step
    optimizer: str  # a transformers optim name
    reasons: dict[str, str]

    def arguments(self) -> dict:
        """Keyword arguments of transformers.TrainingArguments and its TRL children."""
        return {
            "per_device_train_batch_size": self.micro_batch,
            "gradient_accumulation_steps": self.accumulation,
            "bf16": self.precision == "bf16",
            "use_cpu": self.device == "cpu",
            "optim": self.optimizer,
            "gradient_checkpointing": False,
            "dataloader_pin_memory": self.device == "cuda",
        }

    def table(self) -> str:
        rows = [
            ("device", self.device),
            ("precision", self.precision),
            ("attention", self.attention),
            ("micro-batch", f"{self.micro_batch} rows x {self.accumulation}"),
            ("optimizer", self.optimizer),
        ]
        return "\n".join(f"  {name:<12} {value:<18} {self.reasons[name]}" for name, value in rows)


def detect() -> Hardware:
    import torch

    if torch.cuda.is_available():
        _, total = torch.cuda.mem_get_info()
        return Hardware("cuda", torch.cuda.get_device_name(), total, torch.cuda.is_bf16_supported())
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Hardware("cpu", f"{torch.get_num_threads()} threads", total, False)


def resolve(
    hardware: Hardware, batch_rows: int, row_tokens: int, memory: dict[str, int], flattened: bool = False
) -> Recipe:
    """The recipe for steps of ``batch_rows`` rows of ``row_tokens`` tokens.

    The micro-batch is the largest divisor of the batch that fits, so that every step has the same rows.

    Args:
        memory: estimates in bytes, of `stages.scaling.memory.estimates`.
        flattened: the collator joins a micro-batch into one sequence, over which a dense mask grows with the square.
    """
    cuda = hardware.device == "cuda"
    precision = "bf16" if cuda and hardware.bf16 else "fp32"
    per_row = row_tokens * memory[f"activation_bytes_per_token_{precision}"]
    room = MEMORY_SHARE * hardware.memory - memory["states_bytes"]
    fits = int(room // per_row)
    if fits < 1:
        raise UserError(
            f"a step of one row needs {(memory['states_bytes'] + per_row) / 2**30:.1f} GiB; this {hardware.device} has "
            f"{MEMORY_SHARE * hardware.memory / 2**30:.1f} GiB for it. Lower budget_flops or pack.row_tokens."
        )
    if flattened:
        fits = min(fits, max(1, FLATTENED_TOKENS // row_tokens) if cuda else 1)
    elif not cuda:
        fits = min(fits, max(1, MICRO_BATCH_TOKENS_CPU // row_tokens))
    micro_batch = max(rows for rows in range(1, batch_rows + 1) if batch_rows % rows == 0 and rows <= fits)
    return Recipe(
        device=hardware.device,
        precision=precision,
        attention="sdpa",
        micro_batch=micro_batch,
        accumulation=batch_rows // micro_batch,
        optimizer="adamw_torch_fused",
        reasons={
            "device": hardware.name,
            "precision": "autocast, fp32 weights" if precision == "bf16" else "no fast bf16 on this device",
            "attention": "a document sees only itself: the mask follows position_ids",
            "micro-batch": f"{batch_rows} rows a step; {fits:,} fit ({per_row / 2**20:,.0f} MiB a row)",
            "optimizer": "one kernel for all parameters",
        },
    )


def memory_of(config) -> dict[str, int]:
    """The estimates `resolve` needs, for a model loaded from a folder (a transformers LlamaConfig)."""
    from stages.scaling import memory
    from stages.scaling.shapes import Shape

    shape = Shape(**{name: getattr(config, name) for name in Shape.__dataclass_fields__})
    return memory.estimates(shape)
