"""Training a model further on packed rows, for so many epochs: what `sft` and `dpo` have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stages.contract import Run, UserError
from stages.contract.params import Dpo, Sft
from stages.trainer import fit, hardware, lora, models, parallel, recipe
from stages.trainer.rows import PackedRows


@dataclass(frozen=True)
class Work:
    """``label`` names the stage; ``start`` is the model's folder; a step has ``batch_rows`` of ``rows``; ``teacher`` is
    the folder of the model to learn from, if there is one; ``beside`` are the bytes that a device holds besides."""

    run: Run
    label: str
    start: Path
    rows: PackedRows
    batch_rows: int
    params: Sft | Dpo
    teacher: Path | None = None
    beside: int = 0


def tune(work: Work, make: Callable, arguments: Callable | None = None) -> tuple[int, list[dict]] | None:
    """Train and write the model to the stage's out; (steps, the log of them), or None in a process that only helped.

    Args:
        make: (model, tokenizer, keyword arguments of CausalTrainer) -> the trainer. With a teacher, that model is
            another keyword argument, ``teacher``.
        arguments: keyword arguments of transformers.TrainingArguments -> a child of it, for a trainer whose rows are
            not all of one length, so that no speed is measured; None: TrainingArguments.
    """
    run, row_tokens = work.run, work.rows.row_tokens
    machine, shape, rank = hardware.detect(), models.shape(work.start), work.params.lora_rank
    chosen = recipe.resolve(
        machine, shape, work.batch_rows, row_tokens, run.params.trainer, work.rows.one_document,
        lora.parameters(shape, rank) if rank else None, models.shape(work.teacher) if work.teacher else None,
        work.beside,
    )  # fmt: skip
    _refuse(work, chosen)
    if not parallel.in_worker():
        print(chosen.table(), flush=True)
        if chosen.sharding != "none":
            parallel.launch(run, chosen)
            return None
    from transformers import TrainingArguments, set_seed

    from stages.trainer.meter import Meter

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
        decay_share=run.params.trainer.decay,
        args=(arguments or TrainingArguments)(
            **fit.arguments(run, work.params.learning_rate, work.params.warmup),
            **chosen.arguments(),
            **parallel.arguments(chosen),
            num_train_epochs=work.params.epochs,
        ),
    )
    meter = None if arguments else Meter(shape, machine, work.batch_rows * row_tokens, row_tokens, trainer)
    history = fit.fit(trainer, run, work.label, meter, every=chosen.local_steps)
    if rank:
        lora.merge(trainer.accelerator.unwrap_model(trainer.model))
    parallel.save(trainer, tokenizer, run.out)
    return (trainer.state.max_steps, history) if parallel.rank() == 0 else None


def _refuse(work: Work, chosen: recipe.Recipe) -> None:
    """What cannot work together, before anything is loaded."""
    if work.label == "dpo" and chosen.optimizer == "sophia":
        raise UserError("trainer.optimizer: sophia estimates curvature from labels it draws, which have no preference.")
    if work.teacher and chosen.optimizer == "sophia":
        raise UserError("trainer.optimizer: sophia estimates curvature from labels it draws, which no teacher knows.")
    if work.beside and chosen.sharding not in ("none", "ddp"):
        raise UserError(
            f"dpo.loss: {work.params.loss} generates answers with whole weights, beside a reference, and here there is "
            f"memory for {chosen.sharding} only. Set dpo.lora_rank, or use a loss on pairs."
        )
    if not work.params.lora_rank:
        return
    if chosen.offload != "none":
        raise UserError(
            f"{work.label}.lora_rank with trainer.offload: adapters have next to no states. Set one of them."
        )
    if chosen.sharding not in ("none", "ddp"):
        raise UserError(
            f"{work.label}.lora_rank with trainer.sharding {chosen.sharding}: adapters are trained beside whole "
            "weights only. Use ddp, or lora_rank 0."
        )
    if chosen.optimizer == "adam_mini":  # it divides weights by the heads they belong to
        raise UserError(f"{work.label}.lora_rank: trainer.optimizer adam_mini cannot train adapters. Use adamw.")
