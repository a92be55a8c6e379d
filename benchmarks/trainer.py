"""What produced the trainer's figures in docs/benchmarks.md: speed, start, loss parity and memory on one GPU.

    python -m benchmarks.trainer ROWS SECTION ...

ROWS: the folder of `python -m benchmarks.rows`. SECTION: speed (374M), long (374M, rows of 4,096), wide (1.26B),
attention, start, parity, memory, planner, offload. Peers run in the same call, on the same device and rows:
transformers.Trainer, with and without torch_compile and in fp32 with eager attention; litgpt, where it is installed;
and PROBE (the environment variable, a script that takes `bare SIZE ROWS TOKENS`), where it is set. Speeds are of the
median step. Parity writes its curves to RESULTS (the current folder), and what is there already is not run again;
`benchmarks.curves` shows them.
"""

import functools
import gc
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from accelerate.state import AcceleratorState
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback, TrainingArguments

from benchmarks import peers
from stages.contract.params import load_params
from stages.corpus.tokens.packed_rows import Rows, load_rows
from stages.scaling import memory as planned
from stages.trainer.loop import preflight
from stages.trainer.loop.causal import CausalTrainer
from stages.trainer.loop.rows import PackedRows
from stages.trainer.optim import optimizers
from stages.trainer.parallel import sharding
from stages.trainer.plan import hardware, recipe
from verdict.measuring.setting import size_shape as shape

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WANTED = load_params().trainer


def rows(folder: Path, row_tokens: int, masked: bool = True) -> PackedRows:
    """Real documents, packed; not ``masked``: the same tokens as if every row were one document."""
    packed = load_rows(folder / f"rows{row_tokens}")
    if not masked:
        ends = packed.cu_seqlens[:, :2].copy()
        ends[:] = (0, row_tokens)
        packed = Rows(packed.tokens, ends, packed.filled)
    return PackedRows(packed)


class Clock(TrainerCallback):
    """Seconds of the median optimizer step, by the device's own clock: nothing waits for it."""

    def __init__(self, warmup: int):
        self.warmup, self.begin, self.first, self.ends = warmup, 0.0, 0.0, []

    def start(self) -> None:
        """What the first step waits for begins here: model, trainer, workers, compilation."""
        self.begin = time.perf_counter()

    def step(self) -> None:
        if DEVICE == "cpu":
            self.ends.append(time.perf_counter())
        else:
            self.ends.append(torch.cuda.Event(enable_timing=True))
            self.ends[-1].record()
        if len(self.ends) == 1:
            wait()
            self.first = time.perf_counter() - self.begin

    def on_step_end(self, args, state, control, **kwargs):
        self.step()

    @property
    def seconds(self) -> float:
        wait()
        pairs = itertools.pairwise(self.ends[self.warmup - 1 :])
        return statistics.median(b - a if DEVICE == "cpu" else a.elapsed_time(b) / 1e3 for a, b in pairs)


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def arguments(batch: int, steps: int, **extra) -> TrainingArguments:
    chosen = {
        "output_dir": "/tmp/verdict-benchmark", "per_device_train_batch_size": batch, "max_steps": steps,
        "bf16": True, "optim": "adamw_torch_fused", "logging_steps": 10, "save_strategy": "no", "report_to": [],
        "dataloader_num_workers": 2, "logging_nan_inf_filter": False, "disable_tqdm": True, "learning_rate": 3e-4,
        "remove_unused_columns": False, "warmup_steps": 0.1, "max_grad_norm": 1.0,
    }  # fmt: skip
    return TrainingArguments(**chosen | extra)


def clean() -> None:
    """Nothing of the row before is left: not its memory, nor what its trainer has set for the whole process."""
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]  # torch_compile=True leaves some, with which the next fp32 trainer computes in TF32
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_float32_matmul_precision("highest")
    torch.backends.fp32_precision = "ieee"
    gc.collect()
    torch._dynamo.reset()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def line(name: str, size: str, batch: int, row_tokens: int, seconds: float, first: float, note: str = "") -> None:
    of, rate = shape(size, row_tokens), batch * row_tokens / seconds
    full, causal = of.flops_per_token(row_tokens), (of.flops_per_token(row_tokens) + 6 * of.matmul_parameters) / 2
    peak = hardware.detect_hardware().peak_flops or float("nan")
    print(
        f"{name:<38} {size:>5} {batch:>3} x {row_tokens:<5}{rate:>9,.0f} tok/s  MFU {rate * full / peak:5.1%} full "
        f"{rate * causal / peak:5.1%} causal  {torch.cuda.max_memory_allocated() / 2**30:5.1f} GiB  first step "
        f"{first:5.1f} s  {note}", flush=True,
    )  # fmt: skip


def model_of(size: str, row_tokens: int, **extra) -> LlamaForCausalLM:
    torch.manual_seed(0)
    with torch.device(DEVICE):
        return LlamaForCausalLM(LlamaConfig(**shape(size, row_tokens).config(), use_cache=False, **extra))


def ours(folder, size, batch, row_tokens, masked=True, steps=24, name="ours", report=True, **switches):
    """Our trainer; returns (seconds a step, losses)."""
    clean()
    data = rows(folder, row_tokens, masked)
    wanted = WANTED.model_copy(update=switches)
    chosen = recipe.resolve(
        hardware.detect_hardware(), shape(size, row_tokens), batch, row_tokens, wanted, not masked or data.one_document
    )
    clock = Clock(steps // 3)
    clock.start()
    log = 1 if steps > 100 else steps // 2
    trainer = CausalTrainer(
        model=model_of(size, row_tokens), recipe=chosen, train_dataset=data, callbacks=[clock],
        args=arguments(
            chosen.micro_batch, steps,
            **chosen.arguments() | sharding.sharding_arguments(chosen) | {"logging_steps": log},
        ),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if report:
        line(
            f"{name}, {chosen.precision}, {chosen.attention}", size, batch, row_tokens, clock.seconds, clock.first,
            f"micro-batch {chosen.micro_batch}, loss {losses[-1]:.3f}, data wait "
            f"{trainer.data_seconds / (time.perf_counter() - clock.begin):.1%}",
        )  # fmt: skip
    return clock.seconds, losses


def stock(folder, size, batch, row_tokens, name, steps=14, attention="sdpa", **extra):
    clean()
    clock = Clock(steps // 2)
    model = functools.partial(model_of, size, row_tokens, attn_implementation=attention)
    try:
        peers.stock(model, rows(folder, row_tokens), arguments(batch, steps, **extra), clock)
    except torch.OutOfMemoryError:
        print(f"{name:<38} {size:>5} {batch:>3} x {row_tokens:<5} out of memory", flush=True)
        return
    line(name, size, batch, row_tokens, clock.seconds, clock.first)


def litgpt(folder, size, batch, row_tokens, steps=14):
    clean()
    clock = Clock(steps // 2)
    try:
        version = peers.litgpt(shape(size, row_tokens), rows(folder, row_tokens), batch, steps, clock)
    except ImportError as e:
        print(f"litgpt: not installed ({e})", flush=True)
        return
    line(f"litgpt {version}, compiled, bf16-mixed", size, batch, row_tokens, clock.seconds, clock.first)


def probe(size, batch, row_tokens):
    clean()
    peers.probe(size, batch, row_tokens)


def speed(folder: Path) -> None:
    probe("374m", 32, 2048)
    ours(folder, "374m", 32, 2048, masked=False, name="ours, full rows")
    ours(folder, "374m", 32, 2048, name="ours, documents masked")
    ours(folder, "374m", 32, 2048, name="ours, documents masked", attention="flex")
    stock(folder, "374m", 16, 2048, "transformers.Trainer, torch_compile", torch_compile=True)
    stock(folder, "374m", 16, 2048, "transformers.Trainer")
    stock(folder, "374m", 8, 2048, "naive: fp32, eager attention", steps=6, attention="eager", bf16=False)
    litgpt(folder, "374m", 16, 2048)


def long(folder: Path) -> None:
    ours(folder, "374m", 16, 4096, masked=False, name="ours, full rows")
    ours(folder, "374m", 16, 4096, name="ours, documents masked")
    stock(folder, "374m", 8, 4096, "transformers.Trainer, torch_compile", torch_compile=True)
    litgpt(folder, "374m", 8, 4096)


def wide(folder: Path) -> None:
    probe("1.26b", 16, 2048)
    ours(folder, "1.26b", 16, 2048, masked=False, name="ours, full rows")
    ours(folder, "1.26b", 16, 2048, masked=False, name="ours, full rows", precision="fp8")
    ours(folder, "1.26b", 16, 2048, name="ours, documents masked")
    stock(folder, "1.26b", 8, 2048, "transformers.Trainer, torch_compile", torch_compile=True)


def attention(folder: Path) -> None:
    for backend in ("cudnn", "flex", "varlen", "flash4", "flash2"):
        try:
            ours(folder, "374m", 32, 2048, attention=backend, steps=15)
        except Exception as e:
            print(f"{backend}: {type(e).__name__} {str(e)[:300]}", flush=True)


def start(folder: Path) -> None:
    """First step in fresh processes: with empty compiler caches, where only `make gpu` has built its kernels, and with
    filled ones."""
    cache = Path("/tmp/verdict-benchmark-cache")
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TRITON_CACHE_DIR": str(cache / "triton")}

    def python(*arguments: str) -> None:
        done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, check=False)
        print(done.stdout.strip().splitlines()[-1] if done.stdout else done.stderr[-500:], flush=True)

    one = "-m", "benchmarks.trainer", str(folder)
    begin = time.perf_counter()
    python("-c", "from stages.trainer.model.flash4 import build; build()")
    print(f"as `make gpu`: {time.perf_counter() - begin:.1f} s, importing included", flush=True)
    for backend in ("flash4", "flex"):
        shutil.rmtree(cache, ignore_errors=True)
        for state in ("cold", "warm"):
            print(f"{state}: ", end="", flush=True)
            python(*one, f"one:{backend}")


PARITY = {
    "fp32 eager": {"precision": "fp32", "attention": "eager", "compile": "none"},
    "bf16 flex": {"attention": "flex"},
    "bf16 flash4": {"attention": "flash4"},
    "bf16 varlen": {"attention": "varlen"},
    "bf16 checkpointed": {"attention": "flex", "checkpointing": "full"},
    "bf16 selective": {"attention": "flex", "checkpointing": "selective"},
    "fp8": {"attention": "flex", "precision": "fp8"},
    "int8": {"attention": "flex", "precision": "int8"},
}


def parity(folder: Path) -> None:
    """300 steps from one seed on the same real rows; the mean loss of the last 20 against the fp32 reference."""
    out = Path(os.environ.get("RESULTS", ".")) / "parity.csv"
    curves = {}
    if out.exists():
        names, *steps = (line.split(",") for line in out.read_text().splitlines())
        curves = dict(zip(names, ([float(x) for x in column] for column in zip(*steps, strict=True)), strict=True))
    for name, switches in PARITY.items():
        try:
            if name not in curves:
                curves[name] = ours(folder, "110m", 4, 1024, steps=300, report=False, **switches)[1]
        except Exception as e:
            print(f"parity {name}: {type(e).__name__} {str(e)[:200]}", flush=True)
            continue
        last, reference = (sum(losses[-20:]) / 20 for losses in (curves[name], curves["fp32 eager"]))
        print(f"parity {name:<20} loss {curves[name][0]:.4f} -> {last:.4f}  {last / reference - 1:+.3%}", flush=True)
        steps = [",".join(f"{x:.5f}" for x in step) for step in zip(*curves.values(), strict=True)]
        out.write_text("\n".join([",".join(curves), *steps]) + "\n")


def memory(folder: Path) -> None:
    """The planner's prediction against the measured peak."""
    for size, row_tokens, micro, checkpointing, precision in (
        ("374m", 2048, 32, "none", "bf16"), ("374m", 2048, 16, "none", "bf16"), ("374m", 4096, 8, "selective", "bf16"),
        ("374m", 2048, 32, "full", "bf16"), ("1.26b", 2048, 16, "none", "bf16"), ("1.26b", 2048, 16, "none", "fp8"),
        ("1.26b", 4096, 8, "full", "bf16"), ("1.26b", 4096, 8, "selective", "bf16"),
    ):  # fmt: skip
        clean()
        wanted = WANTED.model_copy(update={"checkpointing": checkpointing, "precision": precision})
        of = shape(size, row_tokens)
        chosen = recipe.resolve(hardware.detect_hardware(), of, micro, row_tokens, wanted, True)
        chosen = replace(chosen, micro_batch=micro)
        predicted = sum(planned.step(
            of, micro * row_tokens, precision=precision, checkpointing=checkpointing,
            optimizer_bytes=optimizers.OPTIMIZERS["adamw"].bytes_per_parameter(of),
        ).values()) / 2**30  # fmt: skip
        measured = preflight.measure_steps(of, chosen, row_tokens, steps=2)
        peak = measured.peak / 2**30
        rate = micro * row_tokens / (measured.micro_batch + measured.update)
        print(
            f"memory {size:>5} {micro:>3} x {row_tokens} {checkpointing:<9} {precision}: predicted {predicted:5.1f}, "
            f"measured {peak:5.1f} GiB ({predicted / peak - 1:+.1%}), {rate:,.0f} tok/s", flush=True,
        )  # fmt: skip


PLANS = (
    ("110m", 1024, 64, {}), ("374m", 2048, 32, {}), ("374m", 2048, 64, {"checkpointing": "selective"}),
    ("1.26b", 2048, 16, {}), ("374m", 2048, 128, {}), ("1.26b", 2048, 64, {}),  # the last two in parts
)  # fmt: skip


def planner(folder: Path) -> None:
    """`python -m stages.trainer`'s memory and speed against a training on packed documents."""
    for size, row_tokens, batch, switches in PLANS:
        clean()
        wanted, of = WANTED.model_copy(update=switches), shape(size, row_tokens)
        chosen = recipe.resolve(hardware.detect_hardware(), of, batch, row_tokens, wanted)
        expected = preflight.measure_steps(of, chosen, row_tokens).tokens_per_second(chosen, row_tokens)
        seconds, _ = ours(folder, size, batch, row_tokens, steps=9, report=False, **switches)
        rate, planned = batch * row_tokens / seconds, sum(chosen.memory.values()) / 2**30
        peak = torch.cuda.max_memory_allocated() / 2**30
        cut = f"{chosen.micro_batch} x {chosen.accumulation} rows of {row_tokens}, {chosen.checkpointing}"
        print(
            f"plan {size:>5} {cut:<36}expected {expected:9,.0f} tok/s, measured {rate:9,.0f} "
            f"({expected / rate - 1:+.1%}); planned {planned:5.1f} GiB, measured {peak:5.1f} "
            f"({planned / peak - 1:+.1%})", flush=True,
        )  # fmt: skip


def offload(folder: Path) -> None:
    """A model whose weights, gradients and states (100 GiB) no such device holds takes steps on one."""
    seconds, losses = ours(folder, "7b", 8, 2048, steps=3, name="ours, offload to the host", offload="cpu")
    print(f"offload: {seconds:.1f} s a step of 8 x 2048, losses {losses}", flush=True)


SECTIONS = {
    "speed": speed, "long": long, "wide": wide, "attention": attention, "start": start, "parity": parity,
    "memory": memory, "planner": planner, "offload": offload,
}  # fmt: skip


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[2].startswith("one:"):
        ours(Path(sys.argv[1]), "374m", 32, 2048, steps=6, attention=sys.argv[2].split(":")[1])
        return
    if len(sys.argv) < 3 or set(sys.argv[2:]) - set(SECTIONS):
        sys.exit(__doc__)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.cuda.get_device_name()}")
    for section in sys.argv[2:]:
        SECTIONS[section](Path(sys.argv[1]))


if __name__ == "__main__":
    main()
