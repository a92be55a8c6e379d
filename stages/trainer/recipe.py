"""How a model is trained on the hardware at hand: every choice with its reason.

The batch in tokens is identity and comes from the plan or from params.yaml; how it is cut into micro-batches, and
over how many devices, depends on the machine and is decided here.
"""

from dataclasses import dataclass

from stages.contract.errors import UserError
from stages.contract.params import Trainer as Wanted
from stages.scaling.shapes import Shape
from stages.trainer.hardware import Hardware
from stages.trainer.optimizers import bytes_per_parameter
from stages.trainer.placement import OFFLOADED, Step, place

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
    def on_host(self) -> bool:
        """Whether fp32 weights and states are in the host's memory, by `stages.trainer.offload`."""
        return self.offload == "cpu" and self.sharding == "none"

    @property
    def fused(self) -> bool:
        """Whether one kernel updates all parameters. DTensors have none that reads found_inf; what DeepSpeed keeps are
        plain tensors, and on a CPU anything else would need several copies of them."""
        return self.sharding != "fsdp"

    def arguments(self) -> dict:
        """Keyword arguments of transformers.TrainingArguments."""
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
    hardware: Hardware, shape: Shape, batch_rows: int, row_tokens: int, wanted: Wanted, one_document_rows: bool = False,
    trained: int | None = None, teacher: Shape | None = None, beside: int = 0,
) -> Recipe:  # fmt: skip
    """The recipe for steps of ``batch_rows`` rows of ``row_tokens`` tokens.

    The micro-batch is the largest divisor of the batch that fits, so that every step has the same rows.

    Args:
        wanted: params.yaml's `trainer`.
        one_document_rows: no row of the data holds more than one document.
        trained: parameters that are; None: all.
        teacher: the model that is learnt from, if there is one.
        beside: bytes a device holds for answers that are generated between steps.

    Raises:
        UserError: what is wanted cannot run here, or a step of one row does not fit.
    """
    from stages.trainer import attention

    _refuse(hardware, wanted)
    reasons = {"device": hardware.name}
    precision, reasons["precision"] = _precision(hardware, shape, wanted.precision)
    compile_, reasons["compile"] = _compile(hardware, wanted.compile)
    backend, reasons["attention"] = attention.choose(
        wanted.attention, hardware.device, hardware.capability, one_document_rows
    )
    step = Step(
        shape, batch_rows, row_tokens, precision, compile_ == "layers", wanted.optimizer, trained, teacher, beside
    )
    placed = place(hardware, step, wanted.sharding, wanted.checkpointing, wanted.offload)
    if wanted.stochastic_rounding and placed.offload != "none":
        raise UserError(
            "trainer.stochastic_rounding: bf16 weights have no fp32 ones to keep on the host, and without offload this "
            "model does not fit. Set stochastic_rounding to false."
        )
    reasons |= placed.reasons | {
        "kernels": "inductor's" if compile_ == "layers" else "PyTorch's",
        "optimizer": f"{bytes_per_parameter(wanted.optimizer):.3g} bytes of state a parameter",
        "schedule": "of the peak rate",
    }
    return Recipe(
        device=hardware.device, processes=placed.processes, precision=precision,
        stochastic_rounding=wanted.stochastic_rounding, attention=backend, masked=not one_document_rows,
        compile=compile_, kernels=wanted.kernels, checkpointing=placed.checkpointing, micro_batch=placed.micro_batch,
        accumulation=placed.accumulation, sharding=placed.sharding, offload=placed.offload,
        communication=wanted.communication, local_steps=wanted.local_steps, optimizer=wanted.optimizer,
        schedule=wanted.schedule, skip_sigma=wanted.skip_sigma, memory=placed.memory, room=placed.room,
        reasons=reasons,
    )  # fmt: skip


def _refuse(hardware: Hardware, wanted: Wanted) -> None:
    """What cannot work together, before anything is loaded."""
    if wanted.precision == "fp8_rowwise" and hardware.device == "cpu":  # torch's CPU kernel scales whole tensors only
        raise UserError("trainer.precision: fp8_rowwise needs a GPU. Here: auto, fp32, bf16, fp8 or int8.")
    if wanted.kernels == "liger" and hardware.device == "cpu":
        raise UserError("trainer.kernels: liger needs a GPU. Here: torch.")
    offloaded = wanted.offload in ("cpu", "nvme")
    if offloaded and wanted.optimizer not in OFFLOADED:
        raise UserError(f"trainer.optimizer: {wanted.optimizer} cannot be offloaded; {' and '.join(OFFLOADED)} can.")
    sharded = "zero2" if offloaded and wanted.sharding == "auto" else wanted.sharding
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
