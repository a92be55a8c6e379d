"""Placement of a step: devices, offload to the host, recomputation, rows of a micro-batch."""

from dataclasses import dataclass, replace
from typing import Any

from stages.contract.errors import UserError
from stages.scaling import memory
from stages.scaling.shapes import Shape
from stages.trainer.model.recompute import MODES
from stages.trainer.optim.optimizers import OPTIMIZERS
from stages.trainer.plan.hardware import Hardware

MICRO_BATCH_TOKENS_CPU = 3072  # larger ones fall out of the processor's caches: 2,560 were 1.2x faster than 5,120
MICRO_BATCH_TOKENS_CUDA = 65536  # larger ones gain nothing: matrix products are at their full rate from half of it
MEMORY_SHARE = 0.9  # for everything counted; the rest is the CUDA context's, cuBLAS's and fragmentation's
# Least time of a micro-batch in one layer, in which the host starts its kernels (measured: benchmarks.trainer memory).
LAUNCH_SECONDS = 2e-3


@dataclass(frozen=True)
class Step:
    """Optimizer step to place."""

    shape: Shape
    batch_rows: int
    row_tokens: int
    precision: str
    compiled: bool
    optimizer: str
    trained: int | None = None  # parameters with a gradient and states; None: all
    teacher: Shape | None = None  # the model that is learned from, if there is one
    answer_bytes: int = 0  # bytes a device holds for answers between steps: a reference model, and keys and values

    @property
    def state_bytes(self) -> float:
        """Bytes of the optimizer's states per trained parameter."""
        return OPTIMIZERS[self.optimizer].bytes_per_parameter(self.shape, adapters=self.trained is not None)


@dataclass(frozen=True)
class Placement:
    """Where a step lies, with a reason for each choice."""

    sharding: str
    processes: int
    offload: str
    checkpointing: str
    micro_batch: int  # rows on a device
    accumulation: int  # micro-batches of a device in an optimizer step
    memory: dict[str, float]  # bytes on a device, by use
    room: float  # bytes there are
    reasons: dict[str, str]


class NoRoom(UserError):
    """A step does not fit."""


def place(hardware: Hardware, step: Step, sharding: str, checkpointing: str, offload: str) -> Placement:
    """Return the fastest placement that fits.

    Args:
        sharding, checkpointing, offload: as asked in params.yaml, a name or "auto".

    Raises:
        UserError: it cannot run here; NoRoom: a step of one row does not fit.
    """
    count = max(n for n in range(1, hardware.count + 1) if step.batch_rows % n == 0)
    if count < hardware.count:
        placed = place(replace(hardware, count=count), step, sharding, checkpointing, offload)
        few = f"{count} of {hardware.count}: among more, {step.batch_rows} rows a step cannot be divided"
        return replace(placed, reasons=placed.reasons | {"sharding": few})
    try:
        return _place(hardware, step, sharding, checkpointing, "none" if offload == "auto" else offload)
    except NoRoom:
        whole = OPTIMIZERS[step.optimizer].takes != "pieces" or step.trained is not None
        if offload != "auto" or hardware.device != "cuda" or whole or sharding not in ("auto", "zero2", "zero3"):
            raise
        return _place(hardware, step, sharding, checkpointing, "cpu")


def _place(hardware: Hardware, step: Step, sharding: str, checkpointing: str, offload: str) -> Placement:
    reasons = {}
    states = step.state_bytes
    sharding, reasons["sharding"] = _sharding(hardware, step, states, offload, sharding)
    processes = hardware.count if sharding != "none" else 1
    options: dict[str, Any] = {
        "precision": step.precision, "compiled": step.compiled, "offload": _where(offload, sharding),
        "optimizer_bytes": states, "shards": processes if sharding in ("fsdp", "zero3") else 1, "trained": step.trained,
        "teacher": step.teacher, "buckets": sharding == "ddp",
    }  # fmt: skip
    rows = step.batch_rows // processes
    room = MEMORY_SHARE * hardware.memory / (processes if hardware.device == "cpu" else 1)
    mode, micro_batch, shares, why = _fit(hardware, step, rows, room, checkpointing, options, offload)
    reasons["checkpointing"] = why
    reasons["micro-batch"] = f"{step.batch_rows} rows a step"
    reasons["offload"] = _cost(hardware, step, states, offload, _where(offload, sharding), rows > micro_batch)
    return Placement(sharding, processes, offload, mode, micro_batch, rows // micro_batch, shares, room, reasons)


def _sharding(hardware: Hardware, step: Step, states: float, offload: str, wanted: str) -> tuple[str, str]:
    if offload != "none":
        if wanted not in ("auto", "zero1", "zero2", "zero3"):
            raise UserError(f"trainer.sharding: {wanted} has no offload. Use auto, zero1, zero2 or zero3.")
        if wanted == "auto" and offload == "cpu" and hardware.count == 1:
            return "none", "one device"
        least = "zero3" if offload == "nvme" else "zero2"
        return (least if wanted == "auto" else wanted), "offload of several devices, or to a disk, is DeepSpeed's"
    if wanted.startswith("zero") or (wanted != "auto" and hardware.count > 1):
        return wanted, "as asked"
    if hardware.count == 1:
        return "none", "one device"
    trained = step.shape.parameters if step.trained is None else step.trained
    size = 4 * step.shape.parameters + (4 + states) * trained
    size += memory.frozen(step.teacher, step.precision) if step.teacher else 0
    if size < 0.5 * hardware.memory:
        return "ddp", f"{size / 2**30:.1f} GiB of weights, gradients and states fit on every device"
    return "fsdp", f"{size / 2**30:.1f} GiB of weights, gradients and states are divided"


def _where(offload: str, sharding: str) -> str:
    """Return who offloads weights and states: "" (nobody), "host" (`stages.trainer.model.offload`), "deepspeed"."""
    return "" if offload == "none" else "host" if sharding == "none" else "deepspeed"


def _fit(
    hardware: Hardware, step: Step, rows: int, room: float, wanted: str, options: dict[str, Any], offload: str
) -> tuple[str, int, dict[str, float], str]:
    """Return checkpointing, micro-batch, memory and the reason for that checkpointing: the fastest that fits.

    More recomputation leaves room for more rows at a time, which pays where a micro-batch is too small to keep the
    device busy. So all pairs of both are predicted and compared, instead of taking the least recomputation.
    """
    limit = max(
        1, (MICRO_BATCH_TOKENS_CUDA if hardware.device == "cuda" else MICRO_BATCH_TOKENS_CPU) // step.row_tokens
    )
    fitting, host = [], 0.0
    for checkpointing in MODES if wanted == "auto" else (wanted,):
        for micro_batch in sorted((n for n in range(1, rows + 1) if rows % n == 0 and n <= limit), reverse=True):
            tokens, accumulated = micro_batch * step.row_tokens, rows > micro_batch
            shares = memory.step(step.shape, tokens, checkpointing=checkpointing, accumulated=accumulated, **options)
            shares |= {"answers": step.answer_bytes} if step.answer_bytes else {}
            if offload == "cpu":
                host = memory.host(step.shape, options["offload"], accumulated, options["optimizer_bytes"])
            if sum(shares.values()) <= room and host <= MEMORY_SHARE * hardware.host:
                fitting.append((checkpointing, micro_batch, shares))
    if not fitting:  # the last tried takes the least
        raise NoRoom(_short(hardware, step, room, checkpointing, shares, options))
    # Of equally fast ones the first: it recomputes the least and has the most rows at a time.
    best = min(fitting, key=lambda f: (rows // f[1]) * _layer_seconds(hardware, step, f[0], f[1]))
    without = max((micro_batch for checkpointing, micro_batch, _ in fitting if checkpointing == "none"), default=0)
    return *best, _recomputed_because(wanted, best[0], without)


def _short(
    hardware: Hardware, step: Step, room: float, checkpointing: str, shares: dict[str, float], options: dict[str, Any]
) -> str:
    """Return what is short of memory for a step of one row, and the remedy."""
    if sum(shares.values()) <= room:
        host = memory.host(step.shape, options["offload"], False, options["optimizer_bytes"])
        short = f"offloaded weights and states need {host / 2**30:.1f} GiB of the host's memory"
        short += f"; there are {MEMORY_SHARE * hardware.host / 2**30:.1f}"
    else:
        need = f"{sum(shares.values()) / 2**30:.1f} GiB"
        if step.teacher:
            need += f", the teacher's {shares['teacher'] / 2**30:.1f} among them,"
        if step.answer_bytes:
            need += f", {step.answer_bytes / 2**30:.1f} for answers (dpo.batch_pairs, dpo.answer_tokens) among them,"
        short = f"a step of one row of {step.row_tokens:,} tokens needs {need} with checkpointing {checkpointing}; "
        short += f"there are {room / 2**30:.1f}"
    return (
        f"{short}. Lower budget_flops or pack.row_tokens, set trainer.checkpointing and trainer.offload to auto, "
        "or use more devices."
    )


def _layer_seconds(hardware: Hardware, step: Step, checkpointing: str, micro_batch: int) -> float:
    """Return the seconds of a micro-batch, forward and backward, through one layer at half of the GPU's peak.

    They are relative on a CPU and on a GPU whose peak is not known.
    """
    flops = 6 * step.shape.block_parameters / step.shape.num_hidden_layers * micro_batch * step.row_tokens
    if hardware.device == "cpu" or not hardware.peak_flops:
        return MODES[checkpointing].time * flops
    return max(LAUNCH_SECONDS, MODES[checkpointing].time * flops / (0.5 * hardware.peak_flops))


def _recomputed_because(wanted: str, chosen: str, without: int) -> str:
    """Return the reason for ``chosen``; ``without`` recomputation so many rows fit."""
    if chosen == wanted:
        return "as asked"
    if chosen == "none":
        return "everything fits without"
    return f"faster than {without} rows at a time without" if without else "without it not even one row fits"


def _cost(hardware: Hardware, step: Step, states: float, offload: str, where: str, accumulated: bool) -> str:
    if offload == "none":
        return "states fit on the device"
    if offload == "nvme":
        return "as asked: states on disk, by DeepSpeed; every step reads and writes them"
    need, moved = memory.host(step.shape, where, accumulated, states), 6 * step.shape.parameters
    return (
        f"{need / 2**30:.0f} of the host's {hardware.host / 2**30:.0f} GiB; a step moves {moved / 2**30:.0f} GiB over "
        "the bus and updates on the processor: seconds"
    )
