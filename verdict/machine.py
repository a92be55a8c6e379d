"""The machine that measures and the versions on it: part of a measurement's identity."""

import hashlib
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

STAGES = Path(__file__).resolve().parents[1] / "stages"
CODE = ("evaluation/paired.py", "scaling", "trainer")  # of stages, which the measurements call
PACKAGES = ("torch", "transformers", "triton", "torchao", "liger-kernel", "pytorch-optimizer", "adam-mini", "numpy")


def describe_machine() -> dict[str, Any]:
    """Return processor, GPU, driver and versions; nothing that changes from run to run."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "gpu": torch.cuda.get_device_name() if cuda else "",
        "gpu_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30) if cuda else 0,
        "gpus": torch.cuda.device_count(),
        "cuda": torch.version.cuda or "",
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def write_machine(path: Path) -> None:
    """Write the machine and the trainer's code, as a hash, to ``path`` if it says something else."""
    text = json.dumps(describe_machine() | {"code": _code()}, indent=2, sort_keys=True) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def machine_name(machine: dict[str, Any]) -> str:
    """Return a machine in a few words."""
    if machine["gpu"]:
        return f"{machine['gpu']} ({machine['gpu_gib']} GiB)"
    return f"{machine['cores']} cores, {machine['cpu']}"


def _code() -> str:
    """Return the hash of CODE's sources, which are outside of the measurements' DVC repository."""
    whole = hashlib.sha256()
    for place in CODE:
        for path in sorted((STAGES / place).rglob("*.py")) or [STAGES / place]:
            whole.update(f"{path.relative_to(STAGES)}\n".encode() + path.read_bytes())
    return whole.hexdigest()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
