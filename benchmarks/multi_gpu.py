"""What produced the figures of several GPUs of one host in docs/several-gpus.md: speed, memory, parity, the planner.

    python -m benchmarks.multi_gpu ROWS SECTION ...

ROWS: the folder of `python -m benchmarks.rows`. SECTION: speed (374M and 1.26B against one GPU of the same machine at
equal rows a GPU), big (8B), parity (300 steps at an equal global batch), planner (eight plans: memory and speed
against what was measured). Jobs of one GPU run on all GPUs at a time; jobs of all GPUs one after another, in the same
processes. Speeds are of the median step, MFU counts attention in full, memory is the largest of any GPU.
VERDICT_BENCHMARK_SWITCHES, JSON, changes parameters of the trainer for all jobs; NCCL reads its own variables.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from transformers import PrinterCallback

from benchmarks.trainer import DEVICE, WANTED, Clock, arguments, clean, model_of, rows, shape
from stages.trainer.loop.causal import CausalTrainer
from stages.trainer.parallel import sharding
from stages.trainer.plan import hardware, recipe

SWITCHES = json.loads(os.environ.get("VERDICT_BENCHMARK_SWITCHES", "{}"))


@dataclass(frozen=True)
class Job:
    """A training to measure: ``batch`` rows of ``row_tokens`` a step, over all its GPUs."""

    name: str
    size: str
    batch: int
    row_tokens: int = 2048
    steps: int = 20
    micro_batch: int | None = None  # rows; None: the planner's
    switches: dict[str, Any] = field(default_factory=dict)


def measure(folder: Path, job: Job) -> dict[str, Any]:
    """Train; tokens a second, MFU, memory, and the losses."""
    clean()
    machine, data = hardware.detect_hardware(), rows(folder, job.row_tokens)
    wanted = WANTED.model_copy(update=SWITCHES | job.switches)
    of = shape(job.size, job.row_tokens)
    chosen = recipe.resolve(machine, of, job.batch, job.row_tokens, wanted, data.one_document)
    if job.micro_batch:
        parts = job.batch // chosen.processes // job.micro_batch
        chosen = replace(chosen, micro_batch=job.micro_batch, accumulation=parts)
    clock = Clock(job.steps // 2)
    clock.start()
    logged = 1 if job.steps > 100 else job.steps // 2
    made = chosen.arguments() | sharding.sharding_arguments(chosen) | {"logging_steps": logged}
    trainer = CausalTrainer(
        model=model_of(job.size, job.row_tokens), recipe=chosen, train_dataset=data, callbacks=[clock],
        args=arguments(chosen.micro_batch, job.steps, **made),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    rate = job.batch * job.row_tokens / clock.seconds
    peak = torch.tensor(torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0, device=DEVICE)
    if dist.is_initialized():
        dist.all_reduce(peak, dist.ReduceOp.MAX)
    flops = rate / chosen.processes * of.flops_per_token(job.row_tokens)
    return {
        "rate": rate, "mfu": flops / (machine.peak_flops or float("nan")), "peak": peak.item() / 2**30,
        "planned": sum(chosen.memory.values()) / 2**30, "first": clock.first, "sharding": chosen.sharding,
        "cut": f"{chosen.micro_batch} x {chosen.accumulation} {chosen.checkpointing}", "gpus": chosen.processes,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }  # fmt: skip


def line(job: Job, found: dict[str, Any], one: float = 0.0) -> str:
    """A row of the table; ``one``: tokens/s of one GPU."""
    against = f"{found['rate'] / found['gpus'] / one:.3f} of one" if one else ""
    planned = f"planned {found['planned']:.1f} ({found['planned'] / max(found['peak'], 1e-9) - 1:+.0%})"
    return (
        f"{job.name:<20}{job.size:>6} {job.batch:>3} x {job.row_tokens:<5}{found['rate']:>9,.0f} tok/s {against:<13}"
        f"MFU {found['mfu']:5.1%}  {found['peak']:5.1f} GiB, {planned:<22}{found['cut']:<16} first step "
        f"{found['first']:4.1f} s  loss {found['losses'][-1]:.4f}"
    )


def together(folder: Path, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Measure ``jobs`` on all GPUs, one after another."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = gpus()
    env = os.environ | {
        "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "VERDICT_GPUS": str(world),
    }  # fmt: skip
    workers = [_start(folder, jobs, env | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(world)]
    first, *_ = [_ended(worker) for worker in workers]
    return first


def alone(folder: Path, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Measure ``jobs`` on one GPU each, as many at a time as there are GPUs."""
    found: list[dict[str, Any]] = []
    for begin in range(0, len(jobs), gpus()):
        env = [os.environ | {"CUDA_VISIBLE_DEVICES": str(place), "VERDICT_GPUS": "1"} for place in range(gpus())]
        some = zip(jobs[begin : begin + gpus()], env, strict=False)
        found += [_ended(worker)[0] for worker in [_start(folder, [job], where) for job, where in some]]
    return found


def gpus() -> int:
    return torch.cuda.device_count() if DEVICE == "cuda" else 2


def _start(folder: Path, jobs: Sequence[Job], env: dict[str, str]) -> subprocess.Popen[str]:
    text = json.dumps([asdict(job) for job in jobs])
    command = [sys.executable, "-m", "benchmarks.multi_gpu", str(folder), "work", text]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _ended(worker: subprocess.Popen[str]) -> list[dict[str, Any]]:
    out, err = worker.communicate()
    lines = out.strip().splitlines()
    if worker.returncode or not lines:
        print(f"a worker ended with {worker.returncode}: {err[-1500:]}", flush=True)
    return json.loads(lines[-1]) if lines and lines[-1].startswith("[") else []


def work(folder: Path, text: str) -> None:
    """Measure jobs, in a worker; print what was found as JSON, also what came before a failure."""
    found = []
    for job in json.loads(text):
        try:
            found.append(measure(folder, Job(**job)))
        except Exception as e:
            print(f"{job['name']} {job['size']}: {type(e).__name__} {str(e)[:600]}", file=sys.stderr, flush=True)
            print(json.dumps(found), flush=True)
            sys.exit(1)
    print(json.dumps(found), flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


def show(jobs: Sequence[Job], found: Sequence[dict[str, Any]], ones: dict[str, float] | None = None) -> None:
    for job, one in zip(jobs, found, strict=False):
        print(line(job, one, (ones or {}).get(job.size, 0.0)), flush=True)


def speed(folder: Path) -> None:
    """Two sizes on one GPU, then on all, sharded and not."""
    rows_a_gpu = {"374m": 32, "1.26b": 16}
    single = [Job("one GPU", size, batch) for size, batch in rows_a_gpu.items()]
    found = alone(folder, single)
    show(single, found)
    ones = {job.size: one["rate"] for job, one in zip(single, found, strict=False)}
    jobs = [
        Job(kind, size, batch * gpus(), switches={"sharding": kind})
        for size, batch in rows_a_gpu.items() for kind in ("ddp", "fsdp")
    ]  # fmt: skip
    show(jobs, together(folder, jobs), ones)


def big(folder: Path) -> None:
    """A model that one GPU cannot hold."""
    job = Job("fsdp", "8b", 16 * gpus(), steps=8, switches={"sharding": "fsdp"})
    show([job], together(folder, [job]))


def parity(folder: Path) -> None:
    """The same global batches on one GPU and on all, without and with sharding."""
    one = Job("one GPU", "110m", 16, 1024, 300)
    (reference,) = alone(folder, [one])
    jobs = [Job(kind, "110m", 16, 1024, 300, switches={"sharding": kind}) for kind in ("ddp", "fsdp")]
    for job, found in zip(jobs, together(folder, jobs), strict=False):
        pairs = list(zip(found["losses"], reference["losses"], strict=True))
        last = sum(a for a, _ in pairs[-20:]) / sum(b for _, b in pairs[-20:]) - 1
        print(
            f"parity {job.name}: mean of the last 20 of {len(pairs)} losses {last:+.4%} of one GPU's; largest "
            f"difference of a step {max(abs(a / b - 1) for a, b in pairs):.3%}", flush=True,
        )  # fmt: skip


PLANS = (
    ("374m", 32, None, {}), ("374m", 32, 8, {}), ("374m", 32, None, {"checkpointing": "full"}), ("1.26b", 16, None, {}),
    ("1.26b", 32, 16, {}), ("374m", 32, None, {"sharding": "fsdp"}), ("1.26b", 16, None, {"sharding": "fsdp"}),
    ("1.26b", 32, 8, {"sharding": "fsdp"}),
)  # fmt: skip


def planner(folder: Path) -> None:
    """Planned memory against the measured, and the speed of all GPUs against as many times one, which plans expect."""
    jobs = [
        Job(switches.get("sharding", "ddp"), size, rows_a_gpu * gpus(), micro_batch=micro, switches=switches)
        for size, rows_a_gpu, micro, switches in PLANS
    ]  # fmt: skip
    singles = [
        replace(job, batch=job.batch // gpus(), switches={k: v for k, v in job.switches.items() if k != "sharding"})
        for job in jobs
    ]  # fmt: skip
    for job, one, found in zip(jobs, alone(folder, singles), together(folder, jobs), strict=False):
        show([job], [found], {job.size: one["rate"]})


SECTIONS = {"speed": speed, "big": big, "parity": parity, "planner": planner}


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[2] == "work":
        return work(Path(sys.argv[1]), sys.argv[3])
    if len(sys.argv) < 3 or set(sys.argv[2:]) - set(SECTIONS):
        sys.exit(__doc__)
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {gpus()} x {name}", flush=True)
    for section in sys.argv[2:]:
        began = time.perf_counter()
        SECTIONS[section](Path(sys.argv[1]))
        print(f"{section}: {time.perf_counter() - began:.0f} s", flush=True)
    return None


if __name__ == "__main__":
    main()
