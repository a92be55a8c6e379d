"""The trainer of `sft`: CausalTrainer over packed conversations that watches whether the model learns to stop."""

import torch
import torch.nn.functional as F

from stages.trainer.causal import CausalTrainer


class ChatTrainer(CausalTrainer):
    """CausalTrainer whose log says ``stop_probability``: the mean probability, over the ends of the assistant's turns
    among the labels since the last log, that the model gives to ending the turn there (teacher-forced).

    The loss has these probabilities at hand; they are summed on the device and read when the step is logged anyway.

    Args:
        turn_end: id of the end-of-turn token.
    """

    def __init__(self, model, turn_end: int, **kwargs):
        super().__init__(model=model, **kwargs)
        self.turn_end = turn_end
        self.stops = torch.zeros(2, device=self.args.device)  # sum of the probabilities, and how many

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, output = super().compute_loss(model, inputs, True, num_items_in_batch)
        ends = F.pad(inputs["labels"][:, 1:] == self.turn_end, (0, 1))
        self.stops += torch.stack([torch.where(ends, output["logps"].exp(), 0.0).sum(), ends.sum()])
        return (loss, output) if return_outputs else loss

    def log(self, logs, start_time=None):
        if "loss" in logs:
            total, ends = self.accelerator.reduce(self.stops, reduction="sum").tolist()
            self.stops.zero_()
            if ends:
                logs["stop_probability"] = total / ends
        super().log(logs, start_time)
