"""Distillation: a student learns what a larger model says of every next token (Hinton et al. 2015, arXiv:1503.02531).

The teacher runs beside the student, on the same packed rows with documents apart, and its logits come chunk by chunk as
the student's do: neither model's [tokens, vocabulary] is ever in memory at once.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from stages.contract.errors import UserError
from stages.trainer import models
from stages.trainer.causal import PackedOutput, hidden_states, prepare
from stages.trainer.chat import ChatTrainer
from stages.trainer.loss import IGNORED, chunked_loss, compiled, next_targets, reciprocal


@dataclass(frozen=True)
class Distillation:
    """``share`` of the loss is the divergence from ``teacher`` at ``temperature``; the rest is cross-entropy."""

    teacher: torch.nn.Module
    share: float
    temperature: float


def find_teacher(folder: Path, student: Path, row_tokens: int) -> Path | None:
    """``folder`` if it holds a model to learn from; None if it does not.

    Raises:
        UserError: it has not the vocabulary of the model in ``student``, or does not know so long rows.
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
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, items: torch.Tensor | int | None,
    told: torch.Tensor, distillation: Distillation,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(sum over the tokens that count of (1 - share) * -log p(next label) + share * T^2 * KL(teacher || student), over
    ``items``, a scalar in fp32; log p of the labels, as `stages.trainer.loss.scored_loss`). The divergence is that of
    both models' softmax at temperature T; T^2 keeps its gradient's size (section 2 of the paper).

    Args:
        hidden, weight, labels, items: as `stages.trainer.loss.scored_loss`.
        told: [B, T, E], what the teacher's head reads.
    """
    targets = next_targets(labels)
    head = distillation.teacher.lm_head.weight.to(told.dtype)
    function = compiled(_loss_and_gradient, hidden.is_cuda)
    mix = reciprocal(items, targets), distillation.share, distillation.temperature
    loss, logps = chunked_loss(
        hidden, weight, lambda logits, y, t: function(logits, t @ head.t(), y, *mix), targets, told.flatten(0, 1)
    )
    return loss, logps.view(labels.shape)


def _loss_and_gradient(logits, told, targets, scale, share, temperature):
    """(loss, log p of the targets, gradient of the logits) of a chunk: logits and told [N, V], targets int64 [N];
    written to be compiled."""
    log_p = logits.float().log_softmax(-1)
    log_student = log_p if temperature == 1 else (logits.float() / temperature).log_softmax(-1)
    log_teacher = (told.float() / temperature).log_softmax(-1)
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


def distilled_forward(self, input_ids, labels=None, num_items_in_batch=None, **batch):
    """Stands in for the forward of a transformers causal LM in training: see `stages.trainer.causal.packed_forward`."""
    with torch.no_grad():  # first: what it needs for a moment is gone before the student keeps anything
        told = hidden_states(self.distillation.teacher, input_ids, **batch)
    hidden = hidden_states(self, input_ids, **batch)
    loss, logps = self.lm_head(hidden, labels, num_items_in_batch, told, self.distillation)
    return PackedOutput(loss=loss, logps=logps)


def distilled_head(self, hidden, *rest):
    """Stands in for the forward of the head."""
    return distillation_loss(hidden, self.weight, *rest)


class DistillationTrainer(ChatTrainer):
    """ChatTrainer whose model learns from a teacher too, which is whole on every device and no part of the model."""

    def __init__(self, model, distillation: Distillation, **kwargs):
        self.distillation = distillation
        super().__init__(model=model, **kwargs)
        distillation.teacher.to(self.args.device)

    def prepare(self, model) -> None:
        teacher = self.distillation.teacher.requires_grad_(False).eval()
        prepare(teacher, replace(self.recipe, checkpointing="none", stochastic_rounding=False, offload="none"))
        model.distillation = self.distillation
        prepare(model, self.recipe, distilled_forward, distilled_head)
