"""Trainer of `sft`: CausalTrainer over packed conversations, with a measure of whether the model learns to stop."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from stages.trainer.loop.causal import CausalTrainer, PackedOutput
from stages.trainer.loop.rows import Batch


class ChatTrainer(CausalTrainer):
    """CausalTrainer that logs ``stop_probability``.

    It is the mean probability that the model gives to ending the turn where the assistant's turns end (teacher-forced),
    since the last log. The loss has these probabilities at hand; they are summed on the device and read when the step
    is logged anyway.

    Args:
        turn_end: id of the end-of-turn token.
    """

    def __init__(self, model: PreTrainedModel, turn_end: int, **kwargs: Any) -> None:
        super().__init__(model=model, **kwargs)
        self.turn_end = turn_end
        self.stops = torch.zeros(2, device=self.args.device)  # sum of the probabilities, and how many

    def compute_loss(
        self, model: torch.nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, PackedOutput]:
        loss, output = super().compute_loss(model, inputs, True, num_items_in_batch)
        ends = F.pad(inputs["labels"][:, 1:] == self.turn_end, (0, 1))
        self.stops += torch.stack([torch.where(ends, output["logps"].exp(), 0.0).sum(), ends.sum()])
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            total, ends = self.accelerator.reduce(self.stops, reduction="sum").tolist()
            self.stops.zero_()
            if ends:
                logs["stop_probability"] = total / ends
        super().log(logs, start_time)
