"""The trainer of causal language models on packed rows: transformers' Trainer with our forward, optimizer and guard."""

import time
import types
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Trainer
from transformers.utils import ModelOutput

from stages.trainer import attention, offload, optimizers, parallel, schedules
from stages.trainer.communication import communicate
from stages.trainer.guard import Guard
from stages.trainer.loss import scored_loss
from stages.trainer.recipe import Recipe
from stages.trainer.rows import collate, split


@dataclass
class PackedOutput(ModelOutput):
    """``logps``: log p of the label after each position, fp32 [B, T], without a gradient; 0 where there is none."""

    loss: torch.Tensor | None = None
    logps: torch.Tensor | None = None


def packed_forward(self, input_ids, labels=None, num_items_in_batch=None, **batch):
    """Stands in for the forward of a transformers causal LM in training: the loss of a batch of packed rows.

    Args:
        input_ids, labels: int64 [B, T]; labels of -100 do not count.
        num_items_in_batch: labels that count in the optimizer step, over all its micro-batches and processes.
        batch: as :func:`hidden_states`.
    """
    loss, logps = self.lm_head(hidden_states(self, input_ids, **batch), labels, num_items_in_batch)
    return PackedOutput(loss=loss, logps=logps)


def hidden_states(
    self, input_ids, position_ids=None, cu_seqlens=None, documents=None, attention_mask=None, **kwargs
):  # fmt: skip
    """What the head of ``self`` reads, [B, T, D] in the compute dtype.

    Args:
        position_ids: int64 [B, T].
        cu_seqlens: int32 [B, M + 1], where a row's documents end; None: a row is one document.
        documents: how many documents the batch holds, at most.
    """
    if attention_mask is not None:
        raise ValueError("packed rows have no attention_mask; cu_seqlens says what belongs together")
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


def head_loss(self, hidden, labels, num_items_in_batch=None):
    """Stands in for the forward of the head: called as a module, it has its weights where they are sharded."""
    return scored_loss(hidden, self.weight, labels, num_items_in_batch)


def prepare(model, recipe: Recipe, forward=packed_forward, head=head_loss) -> None:
    """Give ``model`` (a Llama-like transformers causal LM) the recipe's attention, precision, checkpointing and
    compiled layers, and the objective's ``forward`` and ``head``, in place. Its weights, their names and its config
    stay those of a plain checkpoint."""
    from stages.trainer import precision, recompute

    attention.register()
    model.config._attn_implementation = attention.NAME
    model.attention_backend, model.masked = recipe.attention, recipe.masked
    model.forward = types.MethodType(forward, model)
    model.lm_head.forward = types.MethodType(head, model.lm_head)
    precision.convert(model, recipe.precision)
    if recipe.stochastic_rounding:
        for p in model.parameters():  # no buffers: the rotary embedding's frequencies would give other positions
            p.data = p.data.bfloat16()
    if recipe.on_host:
        offload.keep_on_host(model, recipe.bf16)
    recompute.checkpoint_layers(model, recipe.checkpointing)
    if recipe.kernels == "liger":
        precision.liger(model)
    if recipe.compile == "layers":
        for part in (*model.model.layers, model.model.norm):
            part.compile(dynamic=False)


def release(model) -> None:
    """Undo what `prepare` did to the model's code, so that it is a transformers model again: to save, to generate."""
    model.__dict__.pop("forward", None)
    model.lm_head.__dict__.pop("forward", None)
    for name in ("attention_backend", "masked", "preference", "distillation"):
        model.__dict__.pop(name, None)
    model.config._attn_implementation = "sdpa"
    offload.take_back(model)


class ByRecipe:
    """What a Trainer takes from ``recipe``, whatever it trains on: optimizer, schedule, guard, sharding.

    Mixed in before transformers.Trainer or a child of it; ``recipe`` is set before that is made, ``guard`` after.
    """

    recipe: Recipe
    guard: Guard
    decay_share = 0.2  # of the steps, in which WSD's rate falls
    first_step = 0  # steps that came before in the schedule
    schedule_steps: int | None = None  # of the schedule in all; None: this trainer's own

    def _build_accelerator_args(self, **kwargs):
        return parallel.accelerated(super()._build_accelerator_args(**kwargs), self.recipe)

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            args, name = self.args, self.recipe.optimizer
            self.optimizer = optimizers.build(
                name, model or self.model, args.learning_rate * optimizers.rate_scale(name), args.weight_decay,
                (args.adam_beta1, args.adam_beta2), self.recipe.fused, self.recipe.stochastic_rounding,
                self.recipe.on_host,
            )  # fmt: skip
            left_out = optimizers.missing(self.optimizer, model or self.model)
            if left_out:
                raise RuntimeError(f"the optimizer does not hold {len(left_out)} parameters, {left_out[0]} among them")
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        if self.lr_scheduler is None:
            steps = self.schedule_steps or num_training_steps
            self.lr_scheduler = schedules.scheduler(
                optimizer or self.optimizer, self.recipe.schedule, steps, self.args.get_warmup_steps(steps),
                self.decay_share, self.first_step,
            )  # fmt: skip
        return self.lr_scheduler

    def _clip_grad_norm(self, model):
        norm = super()._clip_grad_norm(model)
        if not self.is_deepspeed_enabled:  # its engine clips and steps by itself
            self.guard.watch(norm, getattr(self.optimizer, "optimizer", self.optimizer))
        return norm

    def _issue_warnings_after_load(self, load_result):
        """transformers warns of a head that is the embedding as of a weight that the checkpoint lacks."""
        if self.model.config.tie_word_embeddings and "lm_head.weight" in load_result.missing_keys:
            load_result.missing_keys.remove("lm_head.weight")
        super()._issue_warnings_after_load(load_result)

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            self.guard.save(Path(output_dir) / "guard.safetensors")

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.guard.load(Path(checkpoint) / "guard.safetensors")


class CausalTrainer(ByRecipe, Trainer):
    """Trainer over `stages.trainer.rows.PackedRows`.

    Args:
        recipe: how to train; `prepare` is applied to ``model``.
        first_step: steps that came before in the schedule, of ``schedule_steps`` in all (None: this trainer's own).
        decay_share: share of the steps in which WSD's rate falls.
        row_parts: step -> parts each row is cut into.
        Others as transformers.Trainer.
    """

    def __init__(
        self, model, recipe: Recipe, first_step: int = 0, schedule_steps: int | None = None, decay_share: float = 0.2,
        row_parts=lambda step: 1, **kwargs,
    ):  # fmt: skip
        self.recipe, self.decay_share, self.row_parts = recipe, decay_share, row_parts
        self.first_step, self.schedule_steps = first_step, schedule_steps
        self.prepare(model)
        kwargs["args"]._n_gpu = 1  # with several in sight and one process, transformers would take DataParallel
        super().__init__(model=model, **{"data_collator": collate} | kwargs)
        self.model_accepts_loss_kwargs = True  # packed_forward divides by num_items_in_batch
        self.guard = Guard(recipe.skip_sigma, self.args.device)
        self.data_seconds = 0.0
        communicate(self, recipe)

    def prepare(self, model) -> None:
        prepare(model, self.recipe)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        started = time.perf_counter()
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.data_seconds += time.perf_counter() - started
        parts = self.row_parts(self.first_step + self.state.global_step)
        if parts > 1:
            samples = [split(batch, parts) for batch in samples]
            items = self._get_num_items_in_batch(samples, device)
        return samples, items
