"""Distillation: a student learns a larger model's prediction of each next token (Hinton et al. 2015, arXiv:1503.02531).

A label says which token came; the teacher's distribution also says which others could have come, and how likely. The
teacher runs beside the student on the same packed rows, and its logits come chunk by chunk as the student's do: neither
model's [tokens, vocabulary] is ever in memory at once.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.contract.errors import UserError
from stages.corpus.tokens.packed_rows import IGNORED
from stages.trainer.loop.causal import PackedOutput, hidden_states, prepare
from stages.trainer.model import models
from stages.trainer.model.loss import chunked_loss, compiled, next_targets, reciprocal
from stages.trainer.objectives.supervised import ChatTrainer


@dataclass(frozen=True)
class Distillation:
    """``share`` of the loss is the divergence from ``teacher`` at ``temperature``; the rest is cross-entropy."""

    teacher: torch.nn.Module
    share: float
    temperature: float


def find_teacher(folder: Path, student: Path, row_tokens: int) -> Path | None:
    """Return ``folder`` if it holds a model to learn from, else None.

    Raises:
        UserError: its vocabulary is not that of the model in ``student``, or its context is shorter than a row.
    """
    if not (folder / "config.json").exists():
        return None
    theirs, ours = models.shape(folder), models.shape(student)
    if theirs.max_position_embeddings < row_tokens:
        raise UserError(
            f"sft.teacher: rows have {row_tokens:,} tokens, but the model in {folder} knows positions up to "
            f"{theirs.max_position_embeddings:,}. Lower pack.row_tokens or take another teacher."
        )
    if theirs.vocab_size != ours.vocab_size:
        differs = f"vocab_size is {theirs.vocab_size:,} there and {ours.vocab_size:,} here"
    else:
        differs = models.difference(models.load_tokenizer(folder), models.load_tokenizer(student))
    if differs:
        raise UserError(
            f"sft.teacher: the model in {folder} has another vocabulary than the one in {student}: {differs}. Take one "
            "that was trained with this tokenizer, or begin with `init`: a smaller model with the teacher's."
        )
    return folder


def distillation_loss(
    hidden: Tensor, weight: Tensor, labels: Tensor, items: Tensor | int | None, taught: Tensor,
    distillation: Distillation,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the loss, a scalar in fp32, and log p of the labels, as `stages.trainer.model.loss.scored_loss`.

    The loss sums (1 - share) * -log p(next label) + share * T^2 * KL(teacher || student) over the tokens that count,
    divided by ``items``. The divergence is that of both models' softmax at temperature T. Softer distributions have
    gradients smaller by T^2, which the factor restores (section 2 of the paper).

    Args:
        hidden, weight, labels, items: as `stages.trainer.model.loss.scored_loss`.
        taught: [B, T, E], the input of the teacher's head.
    """
    targets = next_targets(labels)
    head = distillation.teacher.lm_head.weight.to(taught.dtype)
    function = compiled(_loss_and_gradient, hidden.is_cuda)
    mix = reciprocal(items, targets), distillation.share, distillation.temperature
    loss, logps = chunked_loss(
        hidden, weight, lambda logits, y, t: function(logits, t @ head.t(), y, *mix), targets, taught.flatten(0, 1)
    )
    return loss, logps.view(labels.shape)


def _loss_and_gradient(
    logits: Tensor, taught: Tensor, targets: Tensor, scale: Tensor, share: float, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, log p of the targets and gradient of the logits of a chunk; written to be compiled.

    Args:
        logits, taught: [N, V], of the student and of the teacher.
        targets: int64 [N].
    """
    log_p = logits.float().log_softmax(-1)
    log_student = log_p if temperature == 1 else (logits.float() / temperature).log_softmax(-1)
    log_teacher = (taught.float() / temperature).log_softmax(-1)
    teacher = log_teacher.exp()
    counts = (targets != IGNORED)[:, None]
    target = targets.clamp(min=0)[:, None]
    divergence = (teacher * (log_teacher - log_student)).sum(-1, keepdim=True)
    picked = log_p.gather(1, target)
    each = share * temperature**2 * divergence - (1 - share) * picked
    hit = torch.arange(logits.shape[1], device=logits.device)[None] == target
    gradient = (1 - share) * (log_p.exp() - hit.float()) + share * temperature * (log_student.exp() - teacher)
    loss, logp = (torch.where(counts, x, 0.0).squeeze(1) for x in (each, picked))
    return loss.sum() * scale, logp, (gradient * (counts * scale)).to(logits.dtype)


def distilled_forward(
    self: PreTrainedModel, input_ids: Tensor, labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None, **batch: Any,
) -> PackedOutput:  # fmt: skip
    """Compute the loss with the teacher's; replaces the forward as `trainer.loop.causal.packed_forward` does."""
    with torch.no_grad():  # first: its working memory is free again before the student keeps anything
        taught = hidden_states(self.distillation.teacher, input_ids, **batch)
    hidden = hidden_states(self, input_ids, **batch)
    loss, logps = self.lm_head(hidden, labels, num_items_in_batch, taught, self.distillation)
    return PackedOutput(loss=loss, logps=logps)


def distilled_head(self: torch.nn.Linear, hidden: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Compute the loss; replaces the forward of the head."""
    return distillation_loss(hidden, self.weight, *rest)


class DistillationTrainer(ChatTrainer):
    """ChatTrainer whose model learns from a teacher too, which is whole on every device and no part of the model."""

    def __init__(self, model: PreTrainedModel, distillation: Distillation, **kwargs: Any) -> None:
        self.distillation = distillation
        super().__init__(model=model, **kwargs)
        distillation.teacher.to(self.args.device)

    def prepare(self, model: PreTrainedModel) -> None:
        teacher = self.distillation.teacher.requires_grad_(False).eval()
        params = self.recipe.params.model_copy(update={"stochastic_rounding": False})
        prepare(teacher, replace(self.recipe, checkpointing="none", offload="none", params=params))
        model.distillation = self.distillation
        prepare(model, self.recipe, distilled_forward, distilled_head)
