"""Kahneman-Tversky optimization over packed pairs (Ethayarajh et al. 2024, arXiv:2402.01306).

The chosen answer is taken as desirable and the rejected one as undesirable, each by itself, and both are measured
against a reference point: the KL between policy and reference, of which log-ratios of answers to other prompts are a
biased estimate that needs no sampling (section 4.1). It is taken over all of an optimizer step, so that neither
micro-batches nor the number of processes change it.
"""

from pathlib import Path

import numpy as np
import torch

from stages.contract import UserError
from stages.contract.params import Trainer as Wanted
from stages.corpus.mismatched import mismatched
from stages.trainer import models
from stages.trainer.preference import STATISTICS, PreferenceTrainer, forward_recipe, paired, reference_logps
from stages.trainer.rows import PackedRows, collate

RATIOS = [STATISTICS.index("rewards/chosen"), STATISTICS.index("rewards/rejected")]


class KtoRows(PackedRows):
    """``rows`` whose items also hold those of ``others``, as ``mismatched``; both as of `preference.paired`."""

    def __init__(self, rows: PackedRows, others: PackedRows):
        super().__init__(rows.rows, extra=rows.extra)
        self.others = others

    def __getitem__(self, i: int) -> dict:
        return super().__getitem__(i) | {"mismatched": self.others[i]}


def with_mismatched(rows: PackedRows, start: Path, wanted: Wanted, logps: Path) -> KtoRows:
    """``rows`` of pairs with their mismatched ones, of which the model in ``start`` is asked unless ``logps`` is there.

    Args:
        logps: a file that is kept, fp32 [R, M]: what every process reads, and a stage that goes on after a stop.

    Raises:
        UserError: there are no answers to another prompt.
    """
    try:
        others = mismatched(rows.rows)
    except ValueError as e:
        raise UserError(f"dpo.loss: kto needs answers to other prompts, and {e}. Use sigmoid.") from None
    if not logps.exists():
        asked = PackedRows(others)
        found = reference_logps(models.load(start)[0], asked, forward_recipe(start, asked, wanted))
        written = logps.with_name(f"written-{logps.name}")
        np.save(written, found, allow_pickle=False)
        written.rename(logps)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # for the processes that train
    return KtoRows(rows, paired(others, np.load(logps, allow_pickle=False)))


def collate_both(items: list[dict]) -> dict:
    """`collate` of the items, and under ``mismatched`` of theirs."""
    own = [{name: value for name, value in item.items() if name != "mismatched"} for item in items]
    return collate(own) | {"mismatched": collate([item["mismatched"] for item in items])}


class KtoTrainer(PreferenceTrainer):
    """PreferenceTrainer over `KtoRows`; ``reference_point`` in its log is in nats."""

    def __init__(self, model, preference, **kwargs):
        super().__init__(model, preference, data_collator=collate_both, **kwargs)
        self.points: list[torch.Tensor] = []

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not samples:
            return samples, items
        point = self.reference_point([batch.pop("mismatched") for batch in samples])
        self.points.append(point)
        return [batch | {"reference_point": point.view(torch.int32)} for batch in samples], items

    @torch.no_grad()
    def reference_point(self, batches: list[dict]) -> torch.Tensor:
        """Mean log-ratio of policy and reference over the mismatched answers of all processes, or 0 if it is less."""
        seen = torch.zeros(len(STATISTICS) + 1, device=self.args.device)
        for batch in batches:
            with self.compute_loss_context_manager():
                seen += self.model_wrapped(**self._prepare_inputs(batch))["statistics"]
        seen = self.accelerator.reduce(seen, reduction="sum")
        return (seen[RATIOS].sum() / (2 * seen[-1] * self.preference.beta)).clamp(min=0)

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs["reference_point"] = float(torch.stack(self.points).mean())
            self.points.clear()
        super().log(logs, start_time)
