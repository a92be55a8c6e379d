"""What a checkpoint costs a training on one device, and whether the training resumes from it to the same bytes.

    python -m benchmarks.checkpoints ROWS SECTION [SIZE]

ROWS: the folder of `python -m benchmarks.rows`. SECTION: cost, resume. SIZE: 1.26b (16 x 2048 tokens a step), 374m, or
tiny (a CPU's). Checkpoints are in TMPDIR: 17 GB of disk for 1.26b.

`cost`: seconds for which training waits, once for a checkpoint in the background and once, in the same training, for
one that it writes itself; seconds until one is published; tokens/s while one is written against tokens/s without.
`resume`: sha256 of the weights after 2N steps, uninterrupted and resumed at N.
"""

import hashlib
import math
import os
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from benchmarks.trainer import DEVICE, WANTED, arguments, clean, rows, wait
from stages.contract.files import remove
from stages.contract.params import load_params
from stages.scaling.shapes import Shape, llama
from stages.trainer.loop import fit
from stages.trainer.loop.causal import CausalTrainer
from stages.trainer.parallel import sharding
from stages.trainer.plan import hardware, recipe
from stages.trainer.saving import sealing
from stages.trainer.saving.checkpoints import Checkpoints
from verdict.measuring.setting import size_shape

BATCHES = {"tiny": (1, 1024), "374m": (32, 2048), "1.26b": (16, 2048)}  # rows, and tokens of a row
WARMUP, PLAIN, HALF = 8, 20, 10  # steps until all is compiled; without a checkpoint; N
NEVER = 1e18


class Steps(TrainerCallback):
    """Run ``script`` at the ends of the steps: a generator that is given the trainer's `Checkpoints`.

    It yields True to save now. The training ends with it.
    """

    def __init__(self, script):
        self.script, self.steps, self.checkpoints = script, None, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.steps = self.script(self)

    def on_step_end(self, args, state, control, **kwargs):
        self.checkpoints.saved_at = time.monotonic()
        if (save := next(self.steps, None)) is None:
            control.should_training_stop = True
        elif save:
            self.checkpoints.saved_at = -NEVER

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()


def shape(size: str) -> Shape:
    row_tokens = BATCHES[size][1]
    return llama(32000, 2, 2, 32, row_tokens) if size == "tiny" else size_shape(size, row_tokens)


def train(folder: Path, size: str, scratch: Path, script) -> CausalTrainer:
    """Train by ``script``, from the newest checkpoint in ``scratch`` if there is one."""
    clean()
    (batch, row_tokens), of = BATCHES[size], shape(size)
    data = rows(folder, row_tokens)
    chosen = recipe.resolve(hardware.detect_hardware(), of, batch, row_tokens, WANTED, data.one_document)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = LlamaForCausalLM(LlamaConfig(**of.config(), use_cache=False))
    steps = Steps(script)
    trainer = CausalTrainer(
        model=model, recipe=chosen, train_dataset=data, callbacks=[steps],
        args=arguments(
            chosen.micro_batch, 1000, **chosen.arguments() | sharding.sharding_arguments(chosen)
            | {"output_dir": str(scratch / "partial"), "bf16": chosen.bf16, "use_cpu": DEVICE == "cpu"},
        ),
    )  # fmt: skip
    add = trainer.add_callback

    def noting(callback):
        steps.checkpoints = callback if isinstance(callback, Checkpoints) else steps.checkpoints
        add(callback)

    trainer.add_callback = noting
    run = types.SimpleNamespace(scratch=scratch, params=load_params(), log=lambda *args, **values: None)
    fit.fit(trainer, run, size)
    return trainer


def sums(model) -> str:
    """The sha256 of all weights."""
    digest = hashlib.sha256()
    for _, weight in sorted(model.state_dict().items()):
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def written(steps: Steps) -> None:
    """Wait for the background."""
    while steps.checkpoints.background.busy():
        time.sleep(0.01)


def now() -> float:
    wait()
    return time.perf_counter()


def several(count: int) -> Iterator[bool]:
    yield from (False for _ in range(count))


def cost(folder: Path, size: str) -> None:
    """Warm up; steps without a checkpoint; one in the background until it is published; one that training writes."""
    figures = {}

    def script(steps):
        yield from several(WARMUP)
        while steps.checkpoints.background.busy():  # memory for the copy
            yield False
        began = now()
        yield from several(PLAIN)
        figures["plain"] = (now() - began) / PLAIN

        began, taken = now(), 1
        yield True
        figures["copied"] = steps.began - began
        while steps.checkpoints.background.busy():
            taken += 1
            yield False
        figures["window"], figures["steps"] = now() - began, taken
        yield False  # collects
        figures["published"] = figures["copied"] + steps.checkpoints.writing

        for path in sealing.numbered(steps.checkpoints.scratch):
            remove(path)
        background, steps.checkpoints.background = steps.checkpoints.background, None
        background.close()
        began = now()
        yield True
        figures["waited"] = steps.began - began

    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        train(folder, size, Path(scratch), script)
        seconds = time.perf_counter() - began
    tokens, window = math.prod(BATCHES[size]), figures["window"]
    lost = window - figures["steps"] * figures["plain"]
    print(
        f"{size}: training waits {figures['copied']:.2f} s for a checkpoint in the background, {figures['waited']:.1f} "
        f"s for one that it writes itself; published after {figures['published']:.1f} s\n"
        f"{size}: {tokens / figures['plain']:,.0f} tokens/s without; {1 - lost / window:.1%} of it in the "
        f"{window:.1f} s in which one is written, {1 - lost / 60:.2%} with one a minute ({lost:.2f} s lost)\n"
        f"{seconds:.0f} s in all", flush=True,
    )  # fmt: skip


def resume(folder: Path, size: str) -> None:
    """2N steps, with a checkpoint in the background at N; the second N again, from the checkpoint."""
    began, ends = time.perf_counter(), []

    def whole(steps):
        yield from several(HALF - 1)
        written(steps)  # memory for the copy
        yield True
        yield from several(HALF - 1)
        written(steps)

    def rest(steps):
        yield from several(HALF - 1)

    with tempfile.TemporaryDirectory() as scratch:
        for script in (whole, rest):
            trainer = train(folder, size, Path(scratch), script)
            ends.append((trainer.state.global_step, sums(trainer.model)))
            print(f"{size}: step {ends[-1][0]}, weights {ends[-1][1][:16]}", flush=True)
            del trainer
    seconds = time.perf_counter() - began
    print(f"resumed: {'the same bytes' if ends[0] == ends[1] else 'OTHER BYTES'}; {seconds:.0f} s in all", flush=True)
    sys.exit(ends[0] != ends[1])


SECTIONS = {"cost": cost, "resume": resume}

if __name__ == "__main__":
    words = [*sys.argv[1:], "1.26b"][:3]
    if len(words) < 3 or words[1] not in SECTIONS or words[2] not in BATCHES:
        sys.exit(__doc__)
    os.environ |= {"VERDICT_CHECKPOINT_SECONDS": "1e9", "VERDICT_CHECKPOINT_BACKGROUND": "1"}
    SECTIONS[words[1]](Path(words[0]), words[2])
