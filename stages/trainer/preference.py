"""Direct preference optimization over packed pairs (Rafailov et al. 2023, arXiv:2305.18290)."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers.utils import ModelOutput

from stages.contract.params import Trainer as Wanted
from stages.corpus.chats import PairRows
from stages.trainer import hardware, models
from stages.trainer.causal import CausalTrainer, hidden_states, prepare
from stages.trainer.loss import token_logps
from stages.trainer.recipe import Recipe, resolve
from stages.trainer.rows import PackedRows, collate

BATCH_ROWS = 64  # of a forward pass alone; a micro-batch is the largest divisor that fits
FORWARD_ONLY = {"optimizer": "adamw", "sharding": "auto", "offload": "none", "checkpointing": "full"}
# Means over pairs. drift: log p - log p of the reference, in nats a token of the answer. kl: 1/2 (that of the answer)²
# in nats a token, k2 of Schulman 2020 (joschu.net/blog/kl-approx.html): how far the model is from the reference, as far
# as given answers can tell, which neither has drawn; `eval` measures it exactly.
STATISTICS = (
    "rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen", "logps/rejected", "drift/chosen",
    "drift/rejected", "kl",
)  # fmt: skip


@dataclass(frozen=True)
class Preference:
    """The objective: one of `losses`, its beta, and what only some of them read."""

    loss: str
    beta: float
    label_smoothing: float = 0.0  # robust: share of pairs taken to be labelled the wrong way round
    gamma: float = 0.0  # simpo: by how much the chosen answer must be likelier


@dataclass
class PairOutput(ModelOutput):
    """``statistics``: sums over the pairs of what STATISTICS names, and their number."""

    loss: torch.Tensor | None = None
    statistics: torch.Tensor | None = None


def paired(rows: PairRows, logps: np.ndarray) -> PackedRows:
    """``rows`` to train on, with what the reference model said of them, fp32 [R, M], of `reference_logps`.

    Its bits travel as integers: FSDP and DeepSpeed cast floating-point inputs to bf16, in which a log-probability of
    -800 is off by two.
    """
    return PackedRows(rows, extra={"pairs": rows.pairs, "reference": np.asarray(logps).view(np.int32)})


def answer_logps(self, input_ids, labels, cu_seqlens, **batch) -> tuple[torch.Tensor, torch.Tensor]:
    """log p of the labels of each document, fp32 [B, M], and how many there are, [B, M]; ``batch`` of `collate`."""
    logps = self.lm_head(hidden_states(self, input_ids, cu_seqlens=cu_seqlens, **batch), labels)
    places = torch.arange(labels.shape[1], device=labels.device, dtype=cu_seqlens.dtype).expand(labels.shape)
    document = torch.searchsorted(cu_seqlens[:, 1:].contiguous(), places.contiguous(), right=True)
    counts = F.pad(labels[:, 1:] != -100, (0, 1)).float()
    empty = torch.zeros(cu_seqlens.shape[0], cu_seqlens.shape[1] - 1, device=labels.device)
    return empty.scatter_add(1, document, logps), empty.scatter_add(1, document, counts)


def pair_forward(self, pairs, reference, num_items_in_batch=None, reference_point=None, **batch):
    """Stands in for the forward of a causal LM: the objective's loss over rows of `stages.corpus.chats.PairRows`.

    Args:
        pairs: int [B], pairs of a row.
        reference: [B, M], the bits of what `answer_logps` of the reference model said, of :func:`paired`.
        num_items_in_batch: pairs of the optimizer step, over all its micro-batches and processes.
        reference_point: kto's, a scalar's bits; None: 0.
        batch: as :func:`answer_logps`.
    """
    logps, counts = answer_logps(self, **batch)
    shape = len(pairs), logps.shape[1] // 2, 2
    asked = reference.view(torch.float32)
    logps, asked, lengths = (x[:, : 2 * shape[1]].view(shape) for x in (logps, asked, counts.clamp(min=1)))
    there = torch.arange(shape[1], device=pairs.device) < pairs[:, None]
    point = 0.0 if reference_point is None else reference_point.view(torch.float32)
    each = losses(self.preference, logps, asked, lengths, point)
    total = num_items_in_batch if num_items_in_batch is not None else pairs.sum()
    moved = (logps - asked).detach()
    rewards, drift, kl = self.preference.beta * moved, moved / lengths, (moved**2 / (2 * lengths)).mean(-1)
    right = rewards[..., 0] > rewards[..., 1]
    seen = (*rewards.unbind(-1), right, *logps.unbind(-1), *drift.unbind(-1), kl, there)
    statistics = torch.stack([torch.where(there, x.detach().float(), 0.0).sum() for x in seen])
    return PairOutput(loss=torch.where(there, each, 0.0).sum() / total, statistics=statistics)


def losses(preference: Preference, logps, reference, lengths, reference_point=0.0) -> torch.Tensor:
    """The loss of each pair.

    sigmoid: eq. 7 of arXiv:2305.18290; hinge: SLiC, arXiv:2305.10425; ipo: eq. 17 of arXiv:2310.12036, per token as
    its authors told TRL; robust: eq. 8 of arXiv:2403.00409; apo_zero and apo_down: arXiv:2408.06266; kto: eq. 7 of
    arXiv:2402.01306, the mean of the losses of a pair's two answers; and without a reference simpo: eq. 6 of
    arXiv:2405.14734; orpo: eq. 6 of arXiv:2403.07691, whose beta is called lambda there.

    Args:
        logps: [..., 2], log p of the chosen and of the rejected answer, in nats.
        reference: the same by the reference model.
        lengths: the answers' tokens.
        reference_point: kto's, see `stages.trainer.kto`.
    """
    beta, flipped = preference.beta, preference.label_smoothing
    chosen, rejected = (logps - reference).unbind(-1)
    margin = beta * (chosen - rejected)
    match preference.loss:
        case "sigmoid":
            return -F.logsigmoid(margin)
        case "hinge":
            return torch.relu(1 - margin)
        case "ipo":
            return (chosen / lengths[..., 0] - rejected / lengths[..., 1] - 1 / (2 * beta)) ** 2
        case "robust":
            return (flipped * F.logsigmoid(-margin) - (1 - flipped) * F.logsigmoid(margin)) / (1 - 2 * flipped)
        case "apo_zero":
            return 1 - torch.sigmoid(beta * chosen) + torch.sigmoid(beta * rejected)
        case "apo_down":
            return torch.sigmoid(beta * chosen) + 1 - torch.sigmoid(margin)
        case "kto":
            desirable, undesirable = beta * (chosen - reference_point), beta * (reference_point - rejected)
            return 1 - (torch.sigmoid(desirable) + torch.sigmoid(undesirable)) / 2
        case "simpo":
            chosen, rejected = (logps / lengths).unbind(-1)
            return -F.logsigmoid(beta * (chosen - rejected) - preference.gamma)
        case "orpo":
            mean = logps / lengths
            odds = mean - torch.log(-torch.expm1(mean.clamp(max=-1e-6)))
            return -mean[..., 0] - beta * F.logsigmoid(odds[..., 0] - odds[..., 1])
    raise ValueError(f"no preference loss is called {preference.loss!r}")


def head_logps(self, hidden, labels):
    """Stands in for the forward of the head."""
    return token_logps(hidden, self.weight, labels)


class PreferenceTrainer(CausalTrainer):
    """CausalTrainer over packed pairs; items hold ``pairs`` and ``reference``, see :func:`pair_forward`."""

    def __init__(self, model, preference: Preference, **kwargs):
        self.preference = preference
        super().__init__(model=model, **kwargs)
        self.seen = torch.zeros(len(STATISTICS) + 1, device=self.args.device)

    def prepare(self, model) -> None:
        model.preference = self.preference
        prepare(model, self.recipe, pair_forward, head_logps)

    def _get_num_items_in_batch(self, batch_samples, device):
        if not batch_samples:
            return None
        pairs = sum(batch["pairs"].sum() for batch in batch_samples)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            pairs = self.accelerator.gather(pairs.to(device)).sum()
        return pairs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        output = model(**inputs, num_items_in_batch=num_items_in_batch)
        self.seen += output["statistics"]
        loss = output["loss"]
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP will divide by it
        return (loss, output) if return_outputs else loss

    def log(self, logs, start_time=None):
        if "loss" in logs:
            *sums, pairs = self.accelerator.reduce(self.seen, reduction="sum").tolist()
            self.seen.zero_()
            means = {name: total / max(pairs, 1) for name, total in zip(STATISTICS, sums, strict=True)}
            logs |= means | {"rewards/margins": means["rewards/chosen"] - means["rewards/rejected"]}
        super().log(logs, start_time)


def forward_recipe(start: Path, rows: PackedRows, wanted: Wanted) -> Recipe:
    """For `reference_logps` of the model in ``start``: one device, which keeps nothing for a backward pass."""
    machine, wanted = replace(hardware.detect(), count=1), wanted.model_copy(update=FORWARD_ONLY)
    chosen = resolve(machine, models.shape(start), BATCH_ROWS, rows.row_tokens, wanted, trained=0)
    return replace(chosen, checkpointing="none")


@torch.no_grad()
def reference_logps(model, rows: PackedRows, recipe, step=lambda done: None) -> np.ndarray:
    """What ``model`` says of every answer: fp32 [R, M], as `answer_logps`, in micro-batches as in training.

    ``model`` is prepared for it, and of no use afterwards.
    """
    prepare(model.to(recipe.device).eval(), recipe, answer_logps, head_logps)
    found = []
    for at in range(0, len(rows), recipe.micro_batch):
        batch = collate([rows[i] for i in range(at, min(at + recipe.micro_batch, len(rows)))])
        batch = {name: x.to(recipe.device) if isinstance(x, torch.Tensor) else x for name, x in batch.items()}
        with torch.autocast(recipe.device, torch.bfloat16, enabled=recipe.bf16):
            found.append(model(**batch)[0].float().cpu())
        step(len(batch["input_ids"]))
    return torch.cat(found).numpy()
