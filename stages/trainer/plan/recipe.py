"""Recipe of a training: every choice for the hardware at hand, each with its reason.

The batch in tokens is identity and comes from the plan or from params.yaml. How it is cut into micro-batches, and over
how many devices, depends on the machine and is decided here.
"""

from dataclasses import dataclass
from typing import Any

from stages.contract.errors import UserError
from stages.contract.params import Trainer as Wanted
from stages.scaling.shapes import Shape
from stages.trainer.model import attention
from stages.trainer.model.conversions import FORMATS, KERNELS
from stages.trainer.optim.optimizers import OPTIMIZERS
from stages.trainer.plan.hardware import Hardware
from stages.trainer.plan.placement import Placement, Step, place

# Two cores with AMX, bf16 over fp32 in tokens/s, two runs each: 92k parameters 0.65 to 0.97, 320k 0.85 to 1.19, 0.9M
# 1.09, 1.7M 1.09 to 1.23, 2.9M 1.59 to 1.66, 10M 1.36 to 1.57. Casting costs what small products gain.
BF16_PARAMETERS_CPU = 10**6
FP8_WIDTH = 2048  # narrower models gain nothing from fp8 (docs/decisions.md: 374M none, 1.26B +22 %)


@dataclass(frozen=True)
class Recipe(Placement):
    """Choices of a training: the values of "auto", the placement of a step, and ``params`` with the rest."""

    device: str  # "cuda" or "cpu"
    precision: str  # one of stages.trainer.model.conversions.FORMATS; below fp32 by autocast over fp32 weights
    attention: str  # one of stages.trainer.model.attention.BACKENDS
    masked: bool  # rows hold several documents, which attention keeps apart
    compile: str  # one of stages.trainer.model.conversions.COMPILATION
    params: Wanted

    @property
    def bf16(self) -> bool:
        return self.precision != "fp32"

    @property
    def on_host(self) -> bool:
        """Whether fp32 weights and states are in the host's memory, by `stages.trainer.model.offload`."""
        return self.offload == "cpu" and self.sharding == "none"

    def arguments(self) -> dict[str, Any]:
        """Return keyword arguments of transformers.TrainingArguments."""
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
            # Blocking, accelerate would wait at every batch for all that the device has still to do.
            "accelerator_config": {"non_blocking": cuda},
            "ddp_find_unused_parameters": False,
        }

    def table(self) -> str:
        """Return the recipe as lines of choice, value and reason."""
        shares = ", ".join(f"{name} {size / 2**30:.3g}" for name, size in self.memory.items())
        values = {
            "device": f"{self.processes} x {self.device}",
            "precision": self.precision,
            "attention": self.attention,
            "compile": self.compile,
            "kernels": self.params.kernels,
            "checkpointing": self.checkpointing,
            "micro-batch": f"{self.micro_batch} rows x {self.accumulation}",
            "sharding": self.sharding,
            "offload": self.offload,
            "optimizer": self.params.optimizer,
            "schedule": self.params.schedule,
            "memory": f"{sum(self.memory.values()) / 2**30:.2f} of {self.room / 2**30:.1f} GiB",
        }
        reasons = self.reasons | {"memory": f"{shares}; predicted"}
        return "\n".join(f"  {name:<14} {value:<20} {reasons[name]}" for name, value in values.items())


def resolve(
    hardware: Hardware, shape: Shape, batch_rows: int, row_tokens: int, wanted: Wanted, one_document_rows: bool = False,
    trained: int | None = None, teacher: Shape | None = None, answer_bytes: int = 0,
) -> Recipe:  # fmt: skip
    """Return the recipe for steps of ``batch_rows`` rows of ``row_tokens`` tokens.

    The micro-batch is the largest divisor of the batch that fits, so that every step has the same rows.

    Args:
        wanted: params.yaml's `trainer`.
        one_document_rows: no row of the data holds more than one document.
        trained: parameters that are trained; None: all.
        teacher: the model that is learned from, if there is one.
        answer_bytes: bytes that a device holds for answers generated between steps.

    Raises:
        UserError: ``wanted`` cannot run here, or a step of one row does not fit.
    """
    _refuse(hardware, wanted)
    precision, why_precision = _precision(hardware, shape, wanted.precision)
    compiled, why_compiled = _compile(hardware, wanted.compile)
    backend, why_backend = attention.choose(
        wanted.attention, hardware.device, hardware.capability, one_document_rows, shape.head_dim, precision
    )
    step = Step(
        shape, batch_rows, row_tokens, precision, compiled == "layers", wanted.optimizer, trained, teacher, answer_bytes
    )
    placed = place(hardware, step, wanted.sharding, wanted.checkpointing, wanted.offload)
    if wanted.stochastic_rounding and placed.offload != "none":
        raise UserError(
            "trainer.stochastic_rounding: bf16 weights have no fp32 ones to keep on the host, and without offload this "
            "model does not fit. Set stochastic_rounding to false."
        )
    reasons = placed.reasons | {
        "device": hardware.description,
        "precision": why_precision,
        "attention": why_backend,
        "compile": why_compiled,
        "kernels": _kernels(wanted.kernels, compiled),
        "optimizer": f"{step.state_bytes:.3g} bytes of state a parameter",
        "schedule": "of the peak rate",
    }
    return Recipe(
        **vars(placed) | {"reasons": reasons}, device=hardware.device, precision=precision, attention=backend,
        masked=not one_document_rows, compile=compiled, params=wanted,
    )  # fmt: skip


def _refuse(hardware: Hardware, wanted: Wanted) -> None:
    """Refuse choices that cannot work together, before anything is loaded."""
    if wanted.precision != "auto" and FORMATS[wanted.precision].gpu and hardware.device == "cpu":
        raise UserError(f"trainer.precision: {wanted.precision} needs a GPU. Here: auto, fp32 or bf16.")
    if KERNELS[wanted.kernels].gpu and hardware.device == "cpu":
        raise UserError(f"trainer.kernels: {wanted.kernels} needs a GPU. Here: torch.")
    offloaded = wanted.offload in ("cpu", "nvme")
    takes = OPTIMIZERS[wanted.optimizer].takes
    if offloaded and takes != "pieces":
        able = [name for name, kind in OPTIMIZERS.items() if kind.takes == "pieces"]
        raise UserError(f"trainer.optimizer: {wanted.optimizer} cannot be offloaded; {' and '.join(able)} can.")
    sharded = "zero2" if offloaded and wanted.sharding == "auto" else wanted.sharding
    if (sharded == "fsdp" and takes == "whole") or (sharded.startswith("zero") and takes != "pieces"):
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
    if hardware.device == "cpu" and shape.parameters < BF16_PARAMETERS_CPU:
        return "fp32", f"bf16 gains nothing on a CPU below {BF16_PARAMETERS_CPU:,} parameters"
    if hardware.device == "cpu":
        return "bf16", "fp32 weights, bf16 products: this processor multiplies them faster, 1.6x from 3M parameters"
    if shape.hidden_size >= FP8_WIDTH and hardware.capability >= (8, 9):
        return "bf16", "fp32 weights, bf16 products; fp8 would be about 1.2x as fast at this width, at a risk in loss"
    return "bf16", "fp32 weights, bf16 products"


def _compile(hardware: Hardware, wanted: str) -> tuple[str, str]:
    if wanted != "auto":
        return wanted, "as asked"
    if hardware.device == "cuda":
        return "layers", "one decoder layer, compiled once for all: 1.4x faster than the whole model, seconds to start"
    return "none", "on a CPU compiled layers have not been shown to give the same bytes twice"


def _kernels(wanted: str, compiled: str) -> str:
    """Return the reason for the kernels of norms, rotary embedding and gated product."""
    if wanted != "torch":
        return "as asked"
    return "inductor's" if compiled == "layers" else "PyTorch's"
