"""Hardware to train on, as torch and the environment state it."""

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from stages.contract.errors import UserError
from stages.contract.process import worker
from stages.trainer.plan.machines import HERE, Machines, find_machines

# Dense bf16 FLOP/s without sparsity, from NVIDIA's data sheets; MFU is counted against these.
PEAK_BF16 = {"B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Hardware:
    """Devices of one machine, or of several that are equal."""

    device: str  # "cuda" or "cpu"
    name: str
    memory: int  # all bytes: with those free now, the micro-batch and so the rounding would vary from run to run
    bf16: bool  # products in bf16 are faster than in fp32
    host: int  # bytes of the machine's own memory, where an offloaded model's states lie
    capability: tuple[int, int] = (0, 0)
    count: int = 1  # devices, or on a CPU processes, that train together
    machines: Machines = HERE  # on which these are

    @property
    def peak_flops(self) -> float | None:
        """Return the bf16 FLOP/s of one device; None if not known."""
        return next((peak for name, peak in PEAK_BF16.items() if name in self.name), None)

    @property
    def description(self) -> str:
        """Return the name of the devices, and by what launcher they are on how many machines."""
        if self.machines.launcher == "local":
            return self.name
        return f"{self.name}; {self.machines.count} machines by {self.machines.launcher}"


def detect_hardware() -> Hardware:
    """Detect the devices. Raises UserError for an impossible VERDICT_GPUS, VERDICT_GPU_GIB or VERDICT_LAUNCHER.

    A worker detects those of its own machine and takes their number from its launcher.
    """
    host = host_memory()
    machines = HERE if worker.is_worker() else find_machines()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        _, total = torch.cuda.mem_get_info()
        return Hardware(
            "cuda", torch.cuda.get_device_name(), _allowed(total), torch.cuda.is_bf16_supported(), host,
            torch.cuda.get_device_capability(), _count(torch.cuda.device_count() * machines.count, None), machines,
        )  # fmt: skip
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # unset, DeepSpeed, which accelerate imports, warns of none
    bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    name, count = f"{torch.get_num_threads()} threads", _count(None, machines.count)
    return Hardware("cpu", name, host, bf16, host, count=count, machines=machines)


def host_memory() -> int:
    """Return the bytes of the machine's own memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free_host_memory() -> int:
    """Return the bytes of the machine's own memory that can be allocated now, within the container's limit."""
    meminfo = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    free = int(meminfo[1]) * 1024 if meminfo else host_memory()
    with contextlib.suppress(OSError, ValueError):  # no cgroup, or one without a limit ("max")
        limit = int((CGROUP / "memory.max").read_text())
        cached = re.search(r"^inactive_file (\d+)", (CGROUP / "memory.stat").read_text(), re.MULTILINE)
        used = int((CGROUP / "memory.current").read_text()) - (int(cached[1]) if cached else 0)
        free = min(free, limit - used)
    return free


def _allowed(total: int) -> int:
    """Return the bytes of a GPU's ``total`` that may be used: VERDICT_GPU_GIB, or all. It bears no identity."""
    value = os.environ.get("VERDICT_GPU_GIB", "")
    if not value:
        return total
    try:
        asked = float(value) * 2**30
    except ValueError:
        asked = 0.0
    if not 0 < asked <= total:
        raise UserError(
            f"VERDICT_GPU_GIB is {value!r}; it must be a number of GiB up to the GPU's {total / 2**30:.0f}."
        )
    return int(asked)


def _count(present: int | None, machines: int | None) -> int:
    """Return VERDICT_GPUS, or all GPUs ``present``, or a process for each of the ``machines``. It bears no identity.

    A process on a CPU uses all cores by its threads.
    """
    value = os.environ.get("VERDICT_GPUS", "")
    if worker.is_worker():
        return int(os.environ["WORLD_SIZE"])
    if not value:
        return present or machines or 1
    if not value.isdigit() or not 1 <= int(value) <= (present or 64):
        has = f"; there are {present}" if present else ""
        raise UserError(f"VERDICT_GPUS is {value!r}; it must be a number of processes from 1 on{has}.")
    return int(value)
