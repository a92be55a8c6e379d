"""How a model is trained on the hardware at hand: every choice with its reason.

The batch in tokens is identity and comes from the plan or from params.yaml; how it is cut into micro-batches, and
over how many devices, depends on the machine and is decided here.
"""

from dataclasses import dataclass

from stages.contract.errors import UserError
from stages.contract.params import Trainer as Wanted
from stages.scaling import memory
from stages.scaling.shapes import Shape
from stages.trainer.hardware import Hardware
from stages.trainer.optimizers import bytes_per_parameter

MICRO_BATCH_TOKENS_CPU = 3072  # larger ones fall out of the processor's caches: 2,560 were 1.2x faster than 5,120
MICRO_BATCH_TOKENS_CUDA = 65536  # larger ones gain nothing: matrix products are at their full rate from half of it
MEMORY_SHARE = 0.9  # for everything counted; the rest is the CUDA context's, cuBLAS's and fragmentation's
FLATTENED_TOKENS = 16384  # a dense mask over so many is 256 MiB
FP8_WIDTH = 2048  # narrower models gain nothing from fp8 (EVIDENCE: 374M none, 1.26B +22 %)


@dataclass(frozen=True)
class Recipe:
    device: str
    processes: int
    precision: str  # one of stages.trainer.precision.FORMATS; below fp32 by autocast over fp32 weights
    stochastic_rounding: bool
    attention: str  # one of stages.trainer.attention.BACKENDS
    masked: bool  # rows hold several documents, which attention keeps apart
    compile: str  # "layers" or "none"
    kernels: str  # "torch" or "liger"
    checkpointing: str  # one of stages.trainer.recompute.MODES
    micro_batch: int  # rows on a device
    accumulation: int  # micro-batches of a device in an optimizer step
    sharding: str  # "none", "ddp", "fsdp", "zero1", "zero2", "zero3"
    offload: str  # "none", "cpu", "nvme"
    communication: str
    local_steps: int
    optimizer: str  # one of stages.trainer.optimizers.NAMES
    schedule: str
    skip_sigma: float
    memory: dict[str, float]  # bytes on a device, by what they hold
    room: float  # bytes there are
    reasons: dict[str, str]

    @property
    def bf16(self) -> bool:
        return self.precision != "fp32"

    @property
    def fused(self) -> bool:
        """Whether one kernel updates all parameters. DTensors have none that reads found_inf; what DeepSpeed keeps are
        plain tensors, and on a CPU anything else would need several copies of them."""
        return self.sharding != "fsdp"

    def arguments(self) -> dict:
        """Keyword arguments of transformers.TrainingArguments and its TRL children."""
        cuda = self.device == "cuda"
        return {
            "per_device_train_batch_size": self.micro_batch,
            "per_device_eval_batch_size": self.micro_batch,
            "gradient_accumulation_steps": self.accumulation,
            "bf16": self.bf16,
            "use_cpu": not cuda,
            "optim": "adamw_torch_fused",
            "gradient_checkpointing": False,
            "dataloader_pin_memory": cuda,
            "dataloader_num_workers": 2 if cuda else 0,
            "dataloader_persistent_workers": cuda,
            # Else accelerate waits, at every batch, for all the device has still to do.
            "accelerator_config": {"non_blocking": cuda},
            "ddp_find_unused_parameters": False,
        }

    def table(self) -> str:
        gib = {name: f"{size / 2**30:.2f}" for name, size in self.memory.items()}
        total = f"{sum(self.memory.values()) / 2**30:.2f} of {self.room / 2**30:.1f} GiB"
        shares = ", ".join(f"{name} {size}" for name, size in gib.items())
        rows = [
            ("device", f"{self.processes} x {self.device}"),
            ("precision", self.precision),
            ("attention", self.attention),
            ("compile", self.compile),
            ("kernels", self.kernels),
            ("checkpointing", self.checkpointing),
            ("micro-batch", f"{self.micro_batch} rows x {self.accumulation}"),
            ("sharding", self.sharding),
            ("offload", self.offload),
            ("optimizer", self.optimizer),
            ("schedule", self.schedule),
            ("memory", total),
        ]
        reasons = self.reasons | {"memory": f"{shares}; predicted"}
        return "\n".join(f"  {name:<14} {value:<20} {reasons[name]}" for name, value in rows)


def resolve(
    hardware: Hardware, shape: Shape, batch_rows: int, row_tokens: int, wanted: Wanted | None = None,
    one_document_rows: bool = False, flattened: bool = False,
) -> Recipe:  # fmt: skip
    """The recipe for steps of ``batch_rows`` rows of ``row_tokens`` tokens.

    The micro-batch is the largest divisor of the batch that fits, so that every step has the same rows.

    Args:
        wanted: params.yaml's `trainer`; None: for TRL's trainers, whose forward pass is their own.
        one_document_rows: no row of the data holds more than one document.
        flattened: the collator joins a micro-batch into one sequence, over which a dense mask grows with the square.

    Raises:
        UserError: what is wanted cannot run here, or a step of one row does not fit.
    """
    from stages.trainer import attention

    auto = wanted is None
    reasons = {"device": hardware.name}
    precision, reasons["precision"] = _precision(hardware, shape, "auto" if auto else wanted.precision)
    if not auto:
        _refuse(hardware, wanted)
    compile_, reasons["compile"] = _compile(hardware, "none" if auto else wanted.compile)
    if auto:
        backend, reasons["attention"] = "sdpa", "TRL's: the mask follows position_ids"
    else:
        backend, reasons["attention"] = attention.choose(
            wanted.attention, hardware.device, hardware.capability, one_document_rows
        )
    optimizer = "adamw" if auto else wanted.optimizer
    offload = "none" if auto else wanted.offload
    sharding, reasons["sharding"] = _sharding(hardware, shape, optimizer, offload, "auto" if auto else wanted.sharding)
    processes = hardware.count if sharding != "none" else 1
    if batch_rows % processes:
        raise UserError(f"a batch of {batch_rows} rows cannot be divided among {processes} processes (VERDICT_GPUS).")
    options = {
        "precision": precision, "compiled": compile_ == "layers", "offload": offload != "none",
        "optimizer_bytes": bytes_per_parameter(optimizer),
        "shards": processes if sharding in ("fsdp", "zero3") else 1,
    }  # fmt: skip
    rows = batch_rows // processes
    limit = _row_limit(hardware, row_tokens, flattened)
    room = MEMORY_SHARE * hardware.memory / (processes if hardware.device == "cpu" else 1)
    asked = "none" if auto else wanted.checkpointing
    checkpointing, micro_batch, shares = _fit(shape, rows, row_tokens, limit, room, asked, options)
    reasons |= {
        "checkpointing": "everything fits without" if checkpointing == "none" else (
            "as asked" if asked == checkpointing else "without it not even one row fits"),
        "micro-batch": f"{batch_rows} rows a step",
        "kernels": "inductor's" if compile_ == "layers" else "PyTorch's",
        "offload": "states fit on the device" if offload == "none" else "as asked: DeepSpeed moves states to the host",
        "optimizer": f"{options['optimizer_bytes']:.3g} bytes of state a parameter",
        "schedule": "transformers' cosine to a tenth" if auto else "of the peak rate",
    }  # fmt: skip
    return Recipe(
        device=hardware.device, processes=processes, precision=precision,
        stochastic_rounding=not auto and wanted.stochastic_rounding, attention=backend,
        masked=not one_document_rows, compile=compile_,
        kernels="torch" if auto else wanted.kernels, checkpointing=checkpointing, micro_batch=micro_batch,
        accumulation=rows // micro_batch, sharding=sharding, offload=offload,
        communication="fp32" if auto else wanted.communication, local_steps=1 if auto else wanted.local_steps,
        optimizer=optimizer, schedule="cosine" if auto else wanted.schedule,
        skip_sigma=0.0 if auto else wanted.skip_sigma, memory=shares, room=room, reasons=reasons,
    )  # fmt: skip


def _refuse(hardware: Hardware, wanted: Wanted) -> None:
    """What cannot work together, before anything is loaded."""
    if wanted.precision == "fp8_rowwise" and hardware.device == "cpu":  # torch's CPU kernel scales whole tensors only
        raise UserError("trainer.precision: fp8_rowwise needs a GPU. Here: auto, fp32, bf16, fp8 or int8.")
    if wanted.kernels == "liger" and hardware.device == "cpu":
        raise UserError("trainer.kernels: liger needs a GPU. Here: torch.")
    sharded = wanted.sharding if wanted.offload == "none" or wanted.sharding != "auto" else "zero2"
    whole = {"sophia", "shampoo"} if sharded == "fsdp" else {"muon", "adam_mini", "sophia", "shampoo", "schedule_free"}
    if (sharded == "fsdp" or sharded.startswith("zero")) and wanted.optimizer in whole:
        raise UserError(
            f"trainer.optimizer: {wanted.optimizer} needs whole parameters, and {sharded} hands it pieces. "
            "Use adamw or lion, or trainer.sharding ddp."
        )
    if wanted.stochastic_rounding and (wanted.precision in ("fp32", "int8") or sharded not in ("auto", "ddp")):
        raise UserError("trainer.stochastic_rounding: needs bf16 or fp8 precision and whole parameters (ddp).")


def _precision(hardware: Hardware, shape: Shape, wanted: str) -> tuple[str, str]:
    if wanted.startswith("fp8") and hardware.device == "cuda" and hardware.capability < (8, 9):
        raise UserError(f"trainer.precision: {wanted} needs compute capability 8.9; {hardware.name} has less.")
    if wanted != "auto":
        return wanted, "as asked"
    if not hardware.bf16:
        return "fp32", "no fast bf16 on this device"
    if shape.hidden_size >= FP8_WIDTH and hardware.capability >= (8, 9):
        return "bf16", "fp32 weights, bf16 products; fp8 would be about 1.2x as fast at this width, at a risk in loss"
    return "bf16", "fp32 weights, bf16 products"


def _compile(hardware: Hardware, wanted: str) -> tuple[str, str]:
    if wanted != "auto":
        return wanted, "as asked"
    if hardware.device == "cuda":
        return "layers", "one decoder layer, compiled once for all: 1.4x faster than the whole model, seconds to start"
    return "none", "the compiler's start costs more than it gains on a CPU"


def _sharding(hardware: Hardware, shape: Shape, optimizer: str, offload: str, wanted: str) -> tuple[str, str]:
    if offload != "none":
        if wanted not in ("auto", "zero1", "zero2", "zero3"):
            raise UserError(f"trainer.sharding: {wanted} has no offload. Use auto, zero1, zero2 or zero3.")
        least = "zero3" if offload == "nvme" else "zero2"
        return (least if wanted == "auto" else wanted), "offload is DeepSpeed's"
    if wanted.startswith("zero") or (wanted != "auto" and hardware.count > 1):
        return wanted, "as asked"
    if hardware.count == 1:
        return "none", "one device"
    states = (8 + bytes_per_parameter(optimizer)) * shape.parameters
    if states < 0.5 * hardware.memory:
        return "ddp", f"{states / 2**30:.1f} GiB of weights, gradients and states fit on every device"
    return "fsdp", f"{states / 2**30:.1f} GiB of weights, gradients and states are divided"


def _row_limit(hardware: Hardware, row_tokens: int, flattened: bool) -> int:
    """Rows beyond which a micro-batch gains nothing."""
    if flattened:
        return max(1, FLATTENED_TOKENS // row_tokens) if hardware.device == "cuda" else 1
    tokens = MICRO_BATCH_TOKENS_CUDA if hardware.device == "cuda" else MICRO_BATCH_TOKENS_CPU
    return max(1, tokens // row_tokens)


def _fit(shape, rows, row_tokens, limit, room, asked, options) -> tuple[str, int, dict[str, float]]:
    """(checkpointing, micro-batch, memory): the least recomputation with which a row fits, the most rows with it."""
    for checkpointing in ("none", "selective", "full") if asked == "auto" else (asked,):
        for micro_batch in sorted((n for n in range(1, rows + 1) if rows % n == 0 and n <= limit), reverse=True):
            shares = memory.step(shape, micro_batch * row_tokens, checkpointing=checkpointing, **options)
            if sum(shares.values()) <= room:
                return checkpointing, micro_batch, shares
    raise UserError(
        f"a step of one row of {row_tokens:,} tokens needs {sum(shares.values()) / 2**30:.1f} GiB with checkpointing "
        f"{checkpointing}; there are {room / 2**30:.1f}. Lower budget_flops or pack.row_tokens, set "
        "trainer.checkpointing to auto, trainer.offload to cpu, or use more devices."
    )
