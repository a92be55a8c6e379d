"""Direct preference optimization over packed pairs (Rafailov et al. 2023, arXiv:2305.18290).

An answer's reward is beta * (log p - log p of the reference), the reward under which the model would be the optimum of
reinforcement learning with a KL penalty beta. So a loss on rewards of pairs trains the model directly: no reward model
and no sampling. The reference's log-probabilities are computed once, by the stage `reference`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from stages.contract.params import Dpo
from stages.contract.params import Trainer as Wanted
from stages.corpus.chats.encoding import PairRows
from stages.corpus.tokens.packed_rows import IGNORED
from stages.trainer.loop.causal import CausalTrainer, hidden_states, prepare
from stages.trainer.loop.rows import Batch, PackedRows, collate
from stages.trainer.model import models
from stages.trainer.model.loss import token_logps
from stages.trainer.plan.hardware import Hardware
from stages.trainer.plan.recipe import Recipe, resolve

BATCH_ROWS = 64  # of a forward pass alone; a micro-batch is the largest divisor that fits
FORWARD_ONLY = {"optimizer": "adamw", "sharding": "auto", "offload": "none", "checkpointing": "full"}
# Means over pairs. drift: log p - log p of the reference, in nats per token of the answer. kl: 1/2 (log-ratio of the
# answer)² in nats per token, k2 of Schulman 2020 (joschu.net/blog/kl-approx.html): an estimate of the distance from the
# reference on answers that neither model has drawn; `eval` measures it exactly.
STATISTICS = (
    "rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen", "logps/rejected", "drift/chosen",
    "drift/rejected", "kl",
)  # fmt: skip


@dataclass
class PairOutput(ModelOutput):
    """``statistics``: sums of STATISTICS over the pairs, and the number of pairs."""

    loss: Tensor | None = None
    statistics: Tensor | None = None


def paired(rows: PairRows, logps: np.ndarray) -> PackedRows:
    """Return ``rows`` to train on, with the log-probabilities of the reference, fp32 [R, M], of `reference_logps`.

    Their bits travel as integers: FSDP and DeepSpeed cast floating-point inputs to bf16, in which a log-probability of
    -800 is off by two.
    """
    return PackedRows(rows, extra={"pairs": rows.pairs, "reference": np.asarray(logps).view(np.int32)})


def answer_logps(
    self: PreTrainedModel, input_ids: Tensor, labels: Tensor, cu_seqlens: Tensor, **batch: Any
) -> tuple[Tensor, Tensor]:
    """Return log p of the labels of each document, fp32 [B, M], and their number, [B, M]; ``batch`` of `collate`."""
    logps = self.lm_head(hidden_states(self, input_ids, cu_seqlens=cu_seqlens, **batch), labels)
    places = torch.arange(labels.shape[1], device=labels.device, dtype=cu_seqlens.dtype).expand(labels.shape)
    document = torch.searchsorted(cu_seqlens[:, 1:].contiguous(), places.contiguous(), right=True)
    counts = F.pad(labels[:, 1:] != IGNORED, (0, 1)).float()
    empty = torch.zeros(cu_seqlens.shape[0], cu_seqlens.shape[1] - 1, device=labels.device)
    return empty.scatter_add(1, document, logps), empty.scatter_add(1, document, counts)


def pair_forward(
    self: PreTrainedModel, pairs: Tensor, reference: Tensor, num_items_in_batch: Tensor | int | None = None,
    reference_point: Tensor | None = None, **batch: Any,
) -> PairOutput:  # fmt: skip
    """Compute the loss over rows of `corpus.chats.encoding.PairRows`; replaces the forward of a causal LM.

    Args:
        pairs: int [B], pairs of a row.
        reference: [B, M], the bits of the reference's log-probabilities, of :func:`paired`.
        num_items_in_batch: pairs of the optimizer step, over all its micro-batches and processes.
        reference_point: kto's, a scalar's bits; None: 0.
        batch: as :func:`answer_logps`.
    """
    logps, counts = answer_logps(self, **batch)
    shape = len(pairs), logps.shape[1] // 2, 2
    before = reference.view(torch.float32)
    logps, before, lengths = (x[:, : 2 * shape[1]].view(shape) for x in (logps, before, counts.clamp(min=1)))
    real = torch.arange(shape[1], device=pairs.device) < pairs[:, None]
    point = 0.0 if reference_point is None else reference_point.view(torch.float32)
    each = losses(self.preference, logps, before, lengths, point)
    total = num_items_in_batch if num_items_in_batch is not None else pairs.sum()
    ratios = (logps - before).detach()
    rewards, drift, kl = self.preference.beta * ratios, ratios / lengths, (ratios**2 / (2 * lengths)).mean(-1)
    right = rewards[..., 0] > rewards[..., 1]
    columns = (*rewards.unbind(-1), right, *logps.unbind(-1), *drift.unbind(-1), kl, real)
    statistics = torch.stack([torch.where(real, x.detach().float(), 0.0).sum() for x in columns])
    return PairOutput(loss=torch.where(real, each, 0.0).sum() / total, statistics=statistics)


class Terms(NamedTuple):
    """Input of a loss of pairs; each tensor is fp32 [..., pairs]."""

    preference: Dpo  # beta, and parameters of single losses
    chosen: Tensor  # log p - log p of the reference, in nats, of the chosen answer
    rejected: Tensor
    margin: Tensor  # beta * (chosen - rejected)
    logps: Tensor  # [..., pairs, 2]: log p of both
    lengths: Tensor  # [..., pairs, 2]: tokens of both
    reference_point: Tensor | float  # kto's


def _sigmoid(terms: Terms) -> Tensor:
    """DPO, eq. 7 of arXiv:2305.18290: logistic regression on the difference of the two rewards."""
    return -F.logsigmoid(terms.margin)


def _hinge(terms: Terms) -> Tensor:
    """SLiC, arXiv:2305.10425."""
    return torch.relu(1 - terms.margin)


def _ipo(terms: Terms) -> Tensor:
    """IPO, eq. 17 of arXiv:2310.12036, per token as its authors advised TRL.

    The sigmoid's loss falls for ever as the margin grows, so a pair seen often drives it without end. A square pulls
    the margin to 1 / (2 beta) and holds it there.
    """
    chosen, rejected = terms.chosen / terms.lengths[..., 0], terms.rejected / terms.lengths[..., 1]
    return (chosen - rejected - 1 / (2 * terms.preference.beta)) ** 2


def _robust(terms: Terms) -> Tensor:
    """Robust DPO, eq. 8 of arXiv:2403.00409: unbiased where a share of the pairs is labeled the wrong way round."""
    flipped = terms.preference.label_smoothing
    right, wrong = F.logsigmoid(terms.margin), F.logsigmoid(-terms.margin)
    return (flipped * wrong - (1 - flipped) * right) / (1 - 2 * flipped)


def _apo_zero(terms: Terms) -> Tensor:
    """APO-zero, arXiv:2408.06266: the chosen answer becomes likelier, the rejected one less likely."""
    beta = terms.preference.beta
    return 1 - torch.sigmoid(beta * terms.chosen) + torch.sigmoid(beta * terms.rejected)


def _apo_down(terms: Terms) -> Tensor:
    """APO-down, arXiv:2408.06266: both become less likely, the rejected one more so."""
    return torch.sigmoid(terms.preference.beta * terms.chosen) + 1 - torch.sigmoid(terms.margin)


def _kto(terms: Terms) -> Tensor:
    """KTO, eq. 7 of arXiv:2402.01306: the mean of the losses of a pair's two answers."""
    beta, point = terms.preference.beta, terms.reference_point
    desirable, undesirable = beta * (terms.chosen - point), beta * (point - terms.rejected)
    return 1 - (torch.sigmoid(desirable) + torch.sigmoid(undesirable)) / 2


def _simpo(terms: Terms) -> Tensor:
    """SimPO, eq. 6 of arXiv:2405.14734, without a reference."""
    chosen, rejected = (terms.logps / terms.lengths).unbind(-1)
    return -F.logsigmoid(terms.preference.beta * (chosen - rejected) - terms.preference.gamma)


def _orpo(terms: Terms) -> Tensor:
    """ORPO, eq. 6 of arXiv:2403.07691, without a reference; beta is called lambda there."""
    mean = terms.logps / terms.lengths
    odds = mean - torch.log(-torch.expm1(mean.clamp(max=-1e-6)))
    return -mean[..., 0] - terms.preference.beta * F.logsigmoid(odds[..., 0] - odds[..., 1])


# dpo.loss on pairs: a row here and a name in `stages.contract.params.Dpo`; a test holds them equal.
LOSSES: dict[str, Callable[[Terms], Tensor]] = {
    "sigmoid": _sigmoid,
    "ipo": _ipo,
    "hinge": _hinge,
    "robust": _robust,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "kto": _kto,
    "simpo": _simpo,
    "orpo": _orpo,
}


def losses(
    preference: Dpo, logps: Tensor, reference: Tensor, lengths: Tensor, reference_point: Tensor | float = 0.0
) -> Tensor:
    """Return the loss of each pair by the row of LOSSES that ``preference`` names.

    Args:
        preference: params.yaml's `dpo`.
        logps: [..., 2], log p of the chosen and of the rejected answer, in nats.
        reference: the same by the reference model.
        lengths: the answers' tokens.
        reference_point: kto's, see `stages.trainer.objectives.kto`.
    """
    chosen, rejected = (logps - reference).unbind(-1)
    margin = preference.beta * (chosen - rejected)
    return LOSSES[preference.loss](Terms(preference, chosen, rejected, margin, logps, lengths, reference_point))


def head_logps(self: torch.nn.Linear, hidden: Tensor, labels: Tensor) -> Tensor:
    """Compute the log-probabilities; replaces the forward of the head."""
    return token_logps(hidden, self.weight, labels)


class PreferenceTrainer(CausalTrainer):
    """CausalTrainer over packed pairs; items hold ``pairs`` and ``reference``, see :func:`pair_forward`."""

    def __init__(self, model: PreTrainedModel, preference: Dpo, **kwargs: Any) -> None:
        self.preference = preference
        super().__init__(model=model, **kwargs)
        self.seen = torch.zeros(len(STATISTICS) + 1, device=self.args.device)

    def prepare(self, model: PreTrainedModel) -> None:
        model.preference = self.preference
        prepare(model, self.recipe, pair_forward, head_logps)

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Tensor | None:
        if not batch_samples:
            return None
        pairs = sum(batch["pairs"].sum() for batch in batch_samples)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            pairs = self.accelerator.gather(pairs.to(device)).sum()
        return pairs

    def compute_loss(
        self, model: torch.nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, PairOutput]:
        output = model(**inputs, num_items_in_batch=num_items_in_batch)
        self.seen += output["statistics"]
        loss = output["loss"]
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP will divide by it
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            *sums, pairs = self.accelerator.reduce(self.seen, reduction="sum").tolist()
            self.seen.zero_()
            means = {name: total / max(pairs, 1) for name, total in zip(STATISTICS, sums, strict=True)}
            logs |= means | {"rewards/margins": means["rewards/chosen"] - means["rewards/rejected"]}
        super().log(logs, start_time)


def forward_recipe(start: Path, rows: PackedRows, wanted: Wanted, machine: Hardware) -> Recipe:
    """Return the recipe of `reference_logps` for the model in ``start``: one of the devices, and no backward pass."""
    alone, wanted = replace(machine, count=1), wanted.model_copy(update=FORWARD_ONLY)
    chosen = resolve(alone, models.shape(start), BATCH_ROWS, rows.row_tokens, wanted, trained=0)
    return replace(chosen, checkpointing="none")


@torch.no_grad()
def reference_logps(
    model: PreTrainedModel, rows: PackedRows, recipe: Recipe, step: Callable[[int], None] = lambda done: None,
    part: int = 0, parts: int = 1,
) -> np.ndarray:  # fmt: skip
    """Return ``model``'s log-probability of every answer, fp32 [R, M], in micro-batches as in training.

    ``model`` is prepared for it, and of no use afterwards.

    Args:
        model: of transformers.
        rows: packed pairs.
        recipe: see `forward_recipe`.
        step: called with the number of rows done.
        part, parts: only these of the micro-batches, which are the same for any number of parts.
    """
    prepare(model.to(recipe.device).eval(), recipe, answer_logps, head_logps)
    logps = []
    for at in np.array_split(np.arange(0, len(rows), recipe.micro_batch), parts)[part].tolist():
        batch = collate([rows[i] for i in range(at, min(at + recipe.micro_batch, len(rows)))])
        batch = {name: x.to(recipe.device) if isinstance(x, Tensor) else x for name, x in batch.items()}
        with torch.autocast(recipe.device, torch.bfloat16, enabled=recipe.bf16):
            logps.append(model(**batch)[0].float().cpu())
        step(len(batch["input_ids"]))
    return torch.cat(logps).numpy()
