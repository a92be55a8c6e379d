"""Tuning of a trained model on packed rows, for a number of epochs: the common part of `sft` and `dpo`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from stages.contract import Run, UserError
from stages.contract.params import Dpo, Sft
from stages.trainer.loop import fit
from stages.trainer.loop.history import History
from stages.trainer.model import lora, models
from stages.trainer.optim.optimizers import OPTIMIZERS
from stages.trainer.parallel import sharding
from stages.trainer.plan import recipe
from stages.trainer.plan.hardware import Hardware

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments


class TrainingRows(Protocol):
    """Training rows: `stages.trainer.loop.rows.PackedRows`, or `stages.trainer.objectives.rollouts.Prompts`."""

    @property
    def row_tokens(self) -> int: ...

    @property
    def one_document(self) -> bool: ...


@dataclass(frozen=True)
class TuneWork:
    """Input of a tuning."""

    run: Run
    label: str  # name of the stage
    start: Path  # folder of the model
    rows: TrainingRows
    batch_rows: int  # rows of a step
    params: Sft | Dpo
    teacher: Path | None = None  # folder of a model to learn from
    answer_bytes: int = 0  # bytes that a device holds for answers between steps


def tune(
    work: TuneWork, make: "Callable[..., Trainer]", arguments: "Callable[..., TrainingArguments] | None" = None
) -> History | None:
    """Train, write the model to the stage's out and return the history; None in a process that only helped.

    Args:
        make: (model, tokenizer, keyword arguments of CausalTrainer) -> the trainer. With a teacher, that model is
            another keyword argument, ``teacher``.
        arguments: keyword arguments of transformers.TrainingArguments -> a child of it, for a trainer whose rows are
            not all of one length, so that no speed is measured; None: TrainingArguments.
    """
    train = partial(_train, work, make=make, arguments=arguments)
    return fit.train_stage(work.run, partial(_resolve, work), train, work.run.params.export.dtype)


def _resolve(work: TuneWork, machine: Hardware) -> recipe.Recipe:
    shape, rank = models.shape(work.start), work.params.lora_rank
    chosen = recipe.resolve(
        machine, shape, work.batch_rows, work.rows.row_tokens, work.run.params.trainer, work.rows.one_document,
        lora.parameters(shape, rank) if rank else None, models.shape(work.teacher) if work.teacher else None,
        work.answer_bytes,
    )  # fmt: skip
    _refuse(work, chosen)
    return chosen


def _train(
    work: TuneWork, chosen: recipe.Recipe, machine: Hardware, make: "Callable[..., Trainer]",
    arguments: "Callable[..., TrainingArguments] | None",
) -> "tuple[Trainer, PreTrainedTokenizerBase, History]":  # fmt: skip
    from transformers import TrainingArguments, set_seed

    from stages.trainer.loop.meter import Meter

    run, row_tokens, rank = work.run, work.rows.row_tokens, work.params.lora_rank
    set_seed(run.params.seed)
    model, tokenizer = models.load(work.start)
    if work.teacher:  # before there are TrainingArguments: with ZeRO-3's, its weights would be divided
        teacher, _ = models.load(work.teacher, dtype="bfloat16" if chosen.bf16 else "float32")
        make = partial(make, teacher=teacher)
    if rank:
        lora.inject(model, rank)
    trainer = make(
        model,
        tokenizer,
        recipe=chosen,
        train_dataset=work.rows,
        args=(arguments or TrainingArguments)(
            **fit.training_arguments(run, work.params.learning_rate, work.params.warmup),
            **chosen.arguments(),
            **sharding.sharding_arguments(chosen),
            num_train_epochs=work.params.epochs,
        ),
    )
    batch_tokens = work.batch_rows * row_tokens
    meter = None if arguments else Meter(models.shape(work.start), machine, batch_tokens, row_tokens, trainer)
    history = fit.fit(trainer, run, work.label, meter, every=chosen.params.local_steps)
    if rank:
        lora.merge(trainer.accelerator.unwrap_model(trainer.model))
    return trainer, tokenizer, history


def _refuse(work: TuneWork, chosen: recipe.Recipe) -> None:
    """Refuse choices that cannot work together, before anything is loaded."""
    optimizer = chosen.params.optimizer
    kind = OPTIMIZERS[optimizer]
    if kind.needs_labels and (work.label == "dpo" or work.teacher):
        loss = "a loss on preferences" if work.label == "dpo" else "distillation"
        raise UserError(f"trainer.optimizer: {optimizer} needs token labels, and {loss} has none. Choose another one.")
    if work.answer_bytes and chosen.sharding not in ("none", "ddp"):
        assert isinstance(work.params, Dpo)
        raise UserError(
            f"dpo.loss: {work.params.loss} needs the whole weights and a reference model in memory, and here only "
            f"{chosen.sharding} fits. Set dpo.lora_rank, or use a loss on pairs."
        )
    if not work.params.lora_rank:
        return
    if chosen.offload != "none":
        raise UserError(
            f"{work.label}.lora_rank with trainer.offload: adapters have next to no states. Set one of them."
        )
    if chosen.sharding not in ("none", "ddp"):
        raise UserError(
            f"{work.label}.lora_rank with trainer.sharding {chosen.sharding}: adapters need whole weights. "
            "Use ddp, or lora_rank 0."
        )
    if not kind.adapters:
        raise UserError(f"{work.label}.lora_rank: trainer.optimizer {optimizer} cannot train adapters. Use adamw.")
