"""Kahneman-Tversky optimization over packed pairs (Ethayarajh et al. 2024, arXiv:2402.01306).

The chosen answer is desirable and the rejected one undesirable, each by itself. People judge gains and losses from a
reference point, so an answer's log-ratio counts from the KL between policy and reference. Log-ratios of answers to
other prompts ("mismatched" pairs) are a biased estimate of it that needs no sampling (section 4.1). It is taken over a
whole optimizer step, so that neither micro-batches nor the number of processes change it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.contract import UserError
from stages.contract.files import atomic_write
from stages.contract.params import Dpo
from stages.contract.params import Trainer as Wanted
from stages.corpus.chats.encoding import PairRows
from stages.corpus.chats.mismatched import mismatched
from stages.trainer.loop.rows import Batch, PackedRows, collate
from stages.trainer.model import models
from stages.trainer.objectives.preference import (
    STATISTICS,
    PreferenceTrainer,
    forward_recipe,
    paired,
    reference_logps,
)  # fmt: skip
from stages.trainer.plan.hardware import detect_hardware

RATIOS = [STATISTICS.index("rewards/chosen"), STATISTICS.index("rewards/rejected")]


class KtoRows(PackedRows):
    """Rows whose items also hold those of ``others``, as ``mismatched``; both of `preference.paired`."""

    def __init__(self, rows: PackedRows, others: PackedRows) -> None:
        super().__init__(rows.rows, extra=rows.extra)
        self.others = others

    def __getitem__(self, i: int) -> dict[str, Any]:
        return super().__getitem__(i) | {"mismatched": self.others[i]}


def with_mismatched(rows: PackedRows, start: Path, wanted: Wanted, logps: Path) -> KtoRows:
    """Return ``rows`` of pairs with their mismatched ones.

    Args:
        start: folder of the reference model.
        logps: file of the mismatched answers' log-probabilities, fp32 [R, M]. It is written once; the other processes
            and a resumed stage read it.

    Raises:
        UserError: there are no answers to another prompt.
    """
    assert isinstance(rows.rows, PairRows)
    try:
        others = mismatched(rows.rows)
    except ValueError as e:
        raise UserError(f"dpo.loss: kto needs answers to other prompts, and {e}. Use sigmoid.") from None
    if not logps.exists():
        unpaired = PackedRows(others)
        recipe = forward_recipe(start, unpaired, wanted, detect_hardware())
        measured = reference_logps(models.load(start)[0], unpaired, recipe)
        with atomic_write(logps) as part:
            np.save(part, measured, allow_pickle=False)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # for the processes that train
    return KtoRows(rows, paired(others, np.load(logps, allow_pickle=False)))


def collate_both(items: list[dict[str, Any]]) -> Batch:
    """`collate` the items, and under ``mismatched`` theirs."""
    own = [{name: value for name, value in item.items() if name != "mismatched"} for item in items]
    return collate(own) | {"mismatched": collate([item["mismatched"] for item in items])}


class KtoTrainer(PreferenceTrainer):
    """PreferenceTrainer over `KtoRows`; ``reference_point`` in its log is in nats."""

    def __init__(self, model: PreTrainedModel, preference: Dpo, **kwargs: Any) -> None:
        super().__init__(model, preference, data_collator=collate_both, **kwargs)
        self.points: list[Tensor] = []

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor | int | None]:
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not samples:
            return samples, items
        point = self.reference_point([batch.pop("mismatched") for batch in samples])
        self.points.append(point)
        return [batch | {"reference_point": point.view(torch.int32)} for batch in samples], items

    @torch.no_grad()
    def reference_point(self, batches: list[Batch]) -> Tensor:
        """Return the mean log-ratio of policy and reference on the mismatched answers of all processes, at least 0."""
        seen = torch.zeros(len(STATISTICS) + 1, device=self.args.device)
        for batch in batches:
            with self.compute_loss_context_manager():
                seen += self.model_wrapped(**self._prepare_inputs(batch))["statistics"]
        seen = self.accelerator.reduce(seen, reduction="sum")
        return (seen[RATIOS].sum() / (2 * seen[-1] * self.preference.beta)).clamp(min=0)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs["reference_point"] = float(torch.stack(self.points).mean())
            self.points.clear()
        super().log(logs, start_time)
