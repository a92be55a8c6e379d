"""Trainer of causal language models on packed rows: transformers' Trainer with our forward, optimizer and guard."""

import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer
from transformers.utils import ModelOutput

from stages.scaling.mup import Mup
from stages.trainer.loop.rows import Batch, collate, split_rows
from stages.trainer.model import attention, offload
from stages.trainer.model.conversions import COMPILATION, FORMATS, KERNELS
from stages.trainer.model.loss import scored_loss
from stages.trainer.model.recompute import checkpoint_layers
from stages.trainer.optim import optimizers, schedules
from stages.trainer.optim.guard import Guard
from stages.trainer.parallel import sharding
from stages.trainer.parallel.communication import communicate
from stages.trainer.plan.recipe import Recipe
from stages.trainer.saving.background import SavesInBackground
from stages.trainer.saving.resharding import ResumesAnySharding


@dataclass
class PackedOutput(ModelOutput):
    """``logps``: log p of the label after each position, fp32 [B, T], without a gradient; 0 where there is none."""

    loss: Tensor | None = None
    logps: Tensor | None = None


def packed_forward(
    self: PreTrainedModel, input_ids: Tensor, labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None, **batch: Any,
) -> PackedOutput:  # fmt: skip
    """Compute the loss of a batch of packed rows; replaces the forward of a transformers causal LM.

    Args:
        input_ids, labels: int64 [B, T]; labels of -100 do not count.
        num_items_in_batch: labels that count in the optimizer step, over all its micro-batches and processes.
        batch: as :func:`hidden_states`.
    """
    loss, logps = self.lm_head(hidden_states(self, input_ids, **batch), labels, num_items_in_batch)
    return PackedOutput(loss=loss, logps=logps)


def hidden_states(
    self: PreTrainedModel, input_ids: Tensor, position_ids: Tensor | None = None, cu_seqlens: Tensor | None = None,
    documents: int | None = None, attention_mask: Tensor | None = None, **kwargs: Any,
) -> Tensor:  # fmt: skip
    """Compute the input of the head, [B, T, D] in the compute dtype.

    Args:
        position_ids: int64 [B, T].
        cu_seqlens: int32 [B, M + 1], where a row's documents end; None: a row is one document.
        documents: upper bound of the batch's documents.
    """
    if attention_mask is not None:
        raise ValueError("packed rows have no attention_mask; cu_seqlens has the bounds of the documents")
    embedded = self.model.embed_tokens(input_ids)
    kind = embedded.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else embedded.dtype
    if not self.masked:
        cu_seqlens = documents = None
    where = attention.documents(cu_seqlens, input_ids, self.attention_backend, documents)
    hidden = self.model(
        inputs_embeds=embedded.to(dtype), position_ids=position_ids, use_cache=False, documents=where
    ).last_hidden_state
    # The last norm multiplies by fp32 weights; without the cast the head's gradient is an fp32 product.
    return hidden.to(dtype)


def head_loss(
    self: torch.nn.Linear, hidden: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the loss; replaces the forward of the head. Called as a module, its weights are whole where sharded."""
    return scored_loss(hidden, self.weight, labels, num_items_in_batch)


def prepare(
    model: PreTrainedModel, recipe: Recipe, forward: Callable[..., Any] = packed_forward,
    head: Callable[..., Any] = head_loss,
) -> None:  # fmt: skip
    """Prepare a Llama-like transformers causal LM for training, in place.

    Its weights, their names and its config stay those of a plain checkpoint; `stages.trainer.loop.export.release`
    undoes the rest.

    Args:
        recipe: attention, precision, checkpointing and compilation.
        forward, head: the objective's forward of the model and of its head.
    """
    attention.register()
    model.config._attn_implementation = attention.NAME
    model.attention_backend, model.masked = recipe.attention, recipe.masked
    model.forward = types.MethodType(forward, model)
    model.lm_head.forward = types.MethodType(head, model.lm_head)
    FORMATS[recipe.precision].apply(model)
    if recipe.params.stochastic_rounding:
        for p in model.parameters():  # no buffers: the rotary embedding's frequencies would give other positions
            p.data = p.data.bfloat16()
    if recipe.on_host:
        offload.keep_on_host(model, recipe.bf16)
    checkpoint_layers(model, recipe.checkpointing)
    KERNELS[recipe.params.kernels].apply(model)
    COMPILATION[recipe.compile].apply(model)


class ByRecipe(ResumesAnySharding, SavesInBackground):
    """Optimizer, schedule, guard and sharding of a ``recipe``, for any transformers Trainer.

    Mixed in before transformers.Trainer or a child of it; ``recipe`` is set before that is made, ``guard`` after.
    """

    recipe: Recipe
    guard: Guard
    mup: Mup | None = None
    optimizer: torch.optim.Optimizer | None
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None
    first_step = 0  # steps that came before in the schedule
    schedule_steps: int | None = None  # of the whole schedule; None: this trainer's own

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        return sharding.accelerated(super()._build_accelerator_args(**kwargs), self.recipe)

    def create_optimizer(self, model: PreTrainedModel | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            args, recipe = self.args, self.recipe
            self.optimizer = optimizers.build_optimizer(
                recipe.params.optimizer, model or self.model, args.learning_rate, args.weight_decay,
                (args.adam_beta1, args.adam_beta2), recipe.params.stochastic_rounding, recipe.on_host, self.mup,
            )  # fmt: skip
            if missing := optimizers.missing(self.optimizer, model or self.model):
                raise RuntimeError(f"the optimizer does not hold {len(missing)} parameters, {missing[0]} among them")
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.lr_scheduler is None:
            steps, params = self.schedule_steps or num_training_steps, self.recipe.params
            self.lr_scheduler = schedules.scheduler(
                optimizer or self.optimizer, params.schedule, steps, self.args.get_warmup_steps(steps), params.decay,
                self.first_step,
            )  # fmt: skip
        return self.lr_scheduler

    def _clip_grad_norm(self, model: torch.nn.Module) -> Tensor:
        norm = super()._clip_grad_norm(model)
        if not self.is_deepspeed_enabled:  # its engine clips and steps by itself
            self.guard.watch(norm, getattr(self.optimizer, "optimizer", self.optimizer))
        return norm

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Drop transformers' warning of a missing head where the head is the embedding."""
        if self.model.config.tie_word_embeddings and "lm_head.weight" in load_result.missing_keys:
            load_result.missing_keys.remove("lm_head.weight")
        super()._issue_warnings_after_load(load_result)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            self.guard.save(Path(output_dir) / "guard.safetensors")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.guard.load(Path(checkpoint) / "guard.safetensors")


class CausalTrainer(ByRecipe, Trainer):
    """Trainer over `stages.trainer.loop.rows.PackedRows`.

    Args:
        recipe: how to train; `prepare` is applied to ``model``.
        first_step: steps that came before in the schedule, of ``schedule_steps`` in all (None: this trainer's own).
        row_parts: step -> parts each row is cut into.
        mup: the model's parametrization; None: standard.
        Others as transformers.Trainer.
    """

    def __init__(
        self, model: PreTrainedModel, recipe: Recipe, first_step: int = 0, schedule_steps: int | None = None,
        row_parts: Callable[[int], int] = lambda step: 1, mup: Mup | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        self.recipe, self.row_parts, self.mup = recipe, row_parts, mup
        self.first_step, self.schedule_steps = first_step, schedule_steps
        self.prepare(model)
        kwargs["args"]._n_gpu = 1  # with several GPUs visible to one process, transformers would take DataParallel
        super().__init__(model=model, **{"data_collator": collate} | kwargs)
        self.model_accepts_loss_kwargs = True  # packed_forward divides by num_items_in_batch
        self.guard = Guard(recipe.params.skip_sigma, self.args.device)
        self.data_seconds = 0.0
        communicate(self, recipe)

    def prepare(self, model: PreTrainedModel) -> None:
        prepare(model, self.recipe)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor | int | None]:
        started = time.perf_counter()
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.data_seconds += time.perf_counter() - started
        parts = self.row_parts(self.first_step + self.state.global_step)
        if parts > 1:
            samples = [split_rows(batch, parts) for batch in samples]
            items = self._get_num_items_in_batch(samples, device)
        return samples, items
