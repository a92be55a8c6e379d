"""Preflight of a training: memory and speed, measured by a few real steps on random tokens."""

import gc
import time
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from stages.scaling.shapes import Shape
from stages.trainer.loop.causal import prepare
from stages.trainer.optim import optimizers
from stages.trainer.plan.recipe import Recipe


@dataclass(frozen=True)
class StepCost:
    """Time and memory of a step."""

    first_step: float  # seconds, with everything that is compiled
    micro_batch: float  # seconds, forward and backward
    update: float  # seconds, clipping and optimizer
    peak: int  # bytes allocated on the device at most; 0 on a CPU

    def tokens_per_second(self, recipe: Recipe, row_tokens: int) -> float:
        """Return the rate of all processes, if communication is hidden behind computation."""
        step = self.micro_batch * recipe.accumulation + self.update
        return recipe.processes * recipe.accumulation * recipe.micro_batch * row_tokens / step


def measure_steps(shape: Shape, recipe: Recipe, row_tokens: int, steps: int = 3) -> StepCost:
    """Train a new model of ``shape`` for ``steps`` steps of one micro-batch, rows of one document each."""
    from transformers import LlamaConfig, LlamaForCausalLM

    device = torch.device(recipe.device)
    torch.manual_seed(0)
    with device:
        model = LlamaForCausalLM(LlamaConfig(**shape.config(), use_cache=False)).train()
    prepare(model, recipe)
    optimizer = optimizers.build_optimizer(
        recipe.params.optimizer, model, 1e-4, 0.1, (0.9, 0.95), recipe.fused, recipe.params.stochastic_rounding,
        recipe.on_host,
    )  # fmt: skip
    ids = torch.randint(0, shape.vocab_size, (recipe.micro_batch, row_tokens), device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = [_step(model, optimizer, ids, recipe) for _ in range(steps + 1)]
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    del model, optimizer
    gc.collect()
    middle = sorted(times[1:])[steps // 2]
    return StepCost(sum(times[0]), *middle, peak)


def _step(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, ids: torch.Tensor, recipe: Recipe
) -> tuple[float, float]:
    """Return the seconds of forward and backward, and of the update."""
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


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
