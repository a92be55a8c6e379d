"""Before a run: does it fit, how fast will it be, how long will it take. A few real steps on random tokens say so."""

import gc
import time
from dataclasses import dataclass

import torch

from stages.scaling.shapes import Shape
from stages.trainer import optimizers
from stages.trainer.causal import prepare
from stages.trainer.recipe import Recipe


@dataclass(frozen=True)
class Measured:
    first_step: float  # seconds, with everything that is compiled
    micro_batch: float  # seconds, forward and backward
    update: float  # seconds, clipping and optimizer
    peak: int  # bytes allocated on the device at most; 0 on a CPU

    def tokens_per_second(self, recipe: Recipe, row_tokens: int) -> float:
        """Of all processes, if communication is hidden behind computation."""
        step = self.micro_batch * recipe.accumulation + self.update
        return recipe.processes * recipe.accumulation * recipe.micro_batch * row_tokens / step


def measure(shape: Shape, recipe: Recipe, row_tokens: int, steps: int = 3) -> Measured:
    """Train a new model of ``shape`` for ``steps`` steps of one micro-batch, rows of one document each."""
    from transformers import LlamaConfig, LlamaForCausalLM

    device = torch.device(recipe.device)
    torch.manual_seed(0)
    with device:
        model = LlamaForCausalLM(LlamaConfig(**shape.config(), use_cache=False)).train()
    prepare(model, recipe)
    optimizer = optimizers.build(
        recipe.optimizer, model, 1e-4, 0.1, (0.9, 0.95), recipe.fused, recipe.stochastic_rounding, recipe.on_host
    )
    ids = torch.randint(0, shape.vocab_size, (recipe.micro_batch, row_tokens), device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = [_step(model, optimizer, ids, recipe) for _ in range(steps + 1)]
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    del model, optimizer
    gc.collect()
    middle = sorted(times[1:])[steps // 2]
    return Measured(sum(times[0]), *middle, peak)


def _step(model, optimizer, ids, recipe) -> tuple[float, float]:
    """(seconds of forward and backward, seconds of the update)."""
    started = time.perf_counter()
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=recipe.bf16):
        loss = model(ids, labels=ids).loss
    loss.backward()
    _wait(ids.device)
    halfway = time.perf_counter()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    _wait(ids.device)
    return halfway - started, time.perf_counter() - halfway


def _wait(device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
