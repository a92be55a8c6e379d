"""Pretraining a model on packed rows, in one phase or, growing, in two."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset, Subset
from transformers import TrainingArguments, set_seed

from stages.contract import Run
from stages.scaling.shapes import Shape
from stages.trainer import curriculum, fit, growth, models, parallel, profiling
from stages.trainer.causal import CausalTrainer
from stages.trainer.hardware import Hardware
from stages.trainer.meter import Meter
from stages.trainer.recipe import Recipe
from stages.trainer.rows import PackedRows


@dataclass(frozen=True)
class Work:
    """What is to be trained, on what, and how; ``plan`` is out/size/plan.json."""

    run: Run
    plan: dict
    recipe: Recipe
    hardware: Hardware
    train: PackedRows
    validation: PackedRows
    order: np.ndarray | None = None  # int64 (steps * batch rows,): the rows to train on; None: by chance


def pretrain(work: Work, tokenizer, init: Path | None) -> tuple[CausalTrainer, list[dict]]:
    """(the trainer of the full model, the log of all steps).

    Args:
        init: a model folder to go on from; None: a new model.
    """
    run, plan = work.run, work.plan
    if run.params.pretrain.order == "easy_first":
        hard = curriculum.difficulty(work.train.rows, tokenizer.get_vocab())
        work = replace(work, order=curriculum.easy_first(hard, plan["steps"] * plan["batch_rows"]))
    set_seed(run.params.seed)
    layers = plan["model"]["num_hidden_layers"]
    shallow = growth.start_layers(layers, run.params.pretrain.layers_from)
    if init is not None:
        return _train(work, models.load(init)[0], 0, plan["steps"])
    if shallow == layers:
        return _train(work, models.create(plan["model"], tokenizer), 0, plan["steps"])
    model, history = _shallow(work, tokenizer, shallow)
    trainer, rest = _train(work, growth.deepen(model, layers), growth.grown_at(plan["steps"]), plan["steps"])
    return trainer, history + rest


def _shallow(work: Work, tokenizer, layers: int):
    """The model of ``layers`` layers after its share of the steps. Kept in the scratch folder: a run that is stopped
    later does not train it again."""
    folder = work.run.scratch / "shallow"
    if not (folder / "model").exists():
        model = models.create(work.plan["model"] | {"num_hidden_layers": layers}, tokenizer)
        part = replace(work, run=replace(work.run, scratch=folder))
        trainer, history = _train(part, model, 0, growth.grown_at(work.plan["steps"]))
        parallel.save(trainer, tokenizer, folder / "aside")
        fit.write_history(history, folder / "aside")
        parallel.publish(folder / "aside", folder / "model")
    return models.load(folder / "model")[0], fit.read_history(folder / "model")


def _rows(work: Work, first_step: int, last_step: int) -> Dataset:
    """What is trained on between two steps, in order if there is one."""
    if work.order is None:
        return work.train
    batch = work.plan["batch_rows"]
    return Subset(work.train, work.order[first_step * batch : last_step * batch])


def _train(work: Work, model, first_step: int, last_step: int) -> tuple[CausalTrainer, list[dict]]:
    run, plan, recipe, params = work.run, work.plan, work.recipe, work.run.params.pretrain
    row_tokens, steps = run.params.pack.row_tokens, plan["steps"]
    trainer = CausalTrainer(
        model=model,
        recipe=recipe,
        first_step=first_step,
        schedule_steps=steps,
        decay_share=run.params.trainer.decay,
        row_parts=lambda step: growth.row_parts(step, steps, row_tokens, params.row_tokens_from),
        train_dataset=_rows(work, first_step, last_step),
        eval_dataset=work.validation,
        args=TrainingArguments(
            **fit.arguments(run, plan["learning_rate"], params.warmup),
            **recipe.arguments(),
            **parallel.arguments(recipe),
            max_steps=last_step - first_step,
            train_sampling_strategy="random" if work.order is None else "sequential",
            adam_beta2=0.95,
            weight_decay=params.weight_decay,
            max_grad_norm=params.clip,
            eval_strategy="steps",
            eval_steps=max(1, steps // 10),
            prediction_loss_only=True,
        ),
    )
    if profiling.wanted() and parallel.rank() == 0:
        trainer.add_callback(profiling.Profile(run.spool.folder / "artifacts" / "profile"))
    shape = Shape.of(model.config.to_dict())
    meter = Meter(shape, work.hardware, plan["batch_tokens"], row_tokens, trainer)
    history = fit.fit(trainer, run, "pretrain", meter, first_step, recipe.local_steps)
    return trainer, history
