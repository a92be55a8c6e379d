"""The ladder from a naive baseline upward: one technique more on each rung, all measured in turn."""

import statistics
from dataclasses import replace
from typing import Any

import torch

from stages.scaling.shapes import Shape
from stages.trainer.loop.preflight import SyntheticTraining
from stages.trainer.plan.recipe import Recipe
from verdict.claims import Claim
from verdict.measuring.intervals import Measured, exact, median_interval
from verdict.measuring.peak import peak_of
from verdict.measuring.setting import Setting
from verdict.measuring.steps import alternate, prepared

NAIVE = {"trainer.precision": "fp32", "trainer.attention": "eager", "trainer.compile": "none"}
RUNGS = {  # what is added, one after another
    "this trainer's loss and fused optimizer": {},
    "BF16": {"trainer.precision": "bf16"},
    "Flash Attention": {"trainer.attention": "auto"},
    "torch.compile": {"trainer.compile": "layers"},
}  # fmt: skip


class NaiveTraining(SyntheticTraining):
    """Training of transformers' own model: fp32, eager attention, its loss over all logits at once."""

    def __init__(self, shape: Shape, recipe: Recipe, row_tokens: int, batch_rows: int) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        self.recipe, self.clip, self.device = replace(recipe, precision="fp32"), 1e9, torch.device(recipe.device)
        torch.manual_seed(0)
        config = LlamaConfig(**shape.config(), use_cache=False, attn_implementation="eager")
        with self.device:
            self.model = LlamaForCausalLM(config).train()
            self.ids = torch.randint(0, shape.vocab_size, (batch_rows, row_tokens))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4, (0.9, 0.95), weight_decay=0.1)


def ladder_speed(claim: Claim, setting: Setting) -> Measured:
    """Measure the tokens/s of the last rung over those of the first."""
    seconds, details = setting.remember(lambda: _climbed(setting), "ladder", setting.narrow)
    return median_interval([a / b for a, b in zip(seconds[0], seconds[-1], strict=True)], **details)


def ladder_cost(claim: Claim, setting: Setting) -> Measured:
    """Measure the device time of the last rung for the same tokens over that of the first."""
    seconds, details = setting.remember(lambda: _climbed(setting), "ladder", setting.narrow)
    return median_interval([b / a for a, b in zip(seconds[0], seconds[-1], strict=True)], **details)


def ladder_memory(claim: Claim, setting: Setting) -> Measured:
    """Measure the peak of the highest rung that was counted over that of the first."""
    _, details = setting.remember(lambda: _climbed(setting), "ladder", setting.narrow)
    peaks = [rung["peak_bytes"] for rung in details["rungs"] if rung["peak_bytes"]]
    return exact(peaks[-1] / peaks[0] - 1, **details)


def _climbed(setting: Setting) -> tuple[list[list[float]], dict[str, Any]]:
    """Return the seconds of a step on each rung, and the rungs' names, tokens/s and peaks."""
    work, overrides = setting.narrow, dict(NAIVE)
    naive = NaiveTraining(work.shape, setting.recipe(work, NAIVE), work.row_tokens, work.batch_rows)
    naive.step()
    peaks = [peak_of(naive, 1, 0)]
    trainings: list[SyntheticTraining] = [naive]
    for added in RUNGS.values():
        overrides |= added
        training, peak = prepared(setting, work, overrides)
        trainings.append(training)
        peaks.append(peak)
    seconds = alternate(trainings, setting.seconds)
    rates = [work.tokens / statistics.median(side) for side in seconds]
    names = ["naive", *RUNGS]
    rungs = [
        {"name": name, "tokens_per_second": rate, "peak_bytes": peak}
        for name, rate, peak in zip(names, rates, peaks, strict=True)
    ]
    return seconds, {"rungs": rungs, "parameters": work.shape.parameters, "batch": [work.batch_rows, work.row_tokens]}
