"""Preflight of a training: memory and speed, measured by a few real steps on random tokens."""

import gc
import time
from dataclasses import dataclass

import torch

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


class SyntheticTraining:
    """Training of a new model on random tokens, rows of one document each, one step at a time.

    Args:
        shape, recipe: what is trained, and how.
        batch_rows: rows of a micro-batch; None: the recipe's.
        clip: gradient norm at most.
    """

    def __init__(
        self, shape: Shape, recipe: Recipe, row_tokens: int, batch_rows: int | None = None, clip: float = 1.0
    ) -> None:  # fmt: skip
        from transformers import LlamaConfig, LlamaForCausalLM

        self.recipe, self.clip = recipe, clip
        self.device = torch.device(recipe.device)
        torch.manual_seed(0)
        with self.device:
            self.model = LlamaForCausalLM(LlamaConfig(**shape.config(), use_cache=False)).train()
        prepare(self.model, recipe)
        self.optimizer = optimizers.build_optimizer(
            recipe.params.optimizer, self.model, 1e-4, 0.1, (0.9, 0.95),
            recipe.params.stochastic_rounding, recipe.on_host,
        )  # fmt: skip
        if hasattr(self.optimizer, "train"):
            self.optimizer.train()  # schedule_free
        rows = batch_rows or recipe.micro_batch
        self.ids = torch.randint(0, shape.vocab_size, (rows, row_tokens), device=self.device)

    def step(self, parts: int = 1) -> tuple[float, float]:
        """Take a step of ``parts`` equal micro-batches; return the seconds of them and of the update."""
        started = time.perf_counter()
        for _ in range(parts):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
                loss = self.model(input_ids=self.ids, labels=self.ids).loss
            loss.backward()
        _wait(self.device)
        halfway = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        _wait(self.device)
        return halfway - started, time.perf_counter() - halfway


def measure_steps(shape: Shape, recipe: Recipe, row_tokens: int, steps: int = 3) -> StepCost:
    """Train a new model of ``shape`` for ``steps`` steps of one micro-batch, rows of one document each."""
    training = SyntheticTraining(shape, recipe, row_tokens)
    if training.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = [training.step() for _ in range(steps + 1)]
    peak = torch.cuda.max_memory_allocated() if training.device.type == "cuda" else 0
    del training
    gc.collect()
    middle = sorted(times[1:])[steps // 2]
    return StepCost(sum(times[0]), *middle, peak)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
