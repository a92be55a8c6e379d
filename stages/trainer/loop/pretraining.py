"""Pretraining of a model on packed rows, in one phase or, growing, in two."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset, Subset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from stages.contract import Run
from stages.contract.files import atomic_folder
from stages.contract.process import worker
from stages.contract.tracking.spool import Spool
from stages.corpus.tokens.packed_rows import Rows, load_rows
from stages.scaling.mup import Mup
from stages.scaling.plan import Plan
from stages.scaling.shapes import Shape
from stages.trainer.loop import export, fit, profiling
from stages.trainer.loop.causal import CausalTrainer
from stages.trainer.loop.history import History, final, load_history, save_history, write_curve, write_points
from stages.trainer.loop.meter import Meter
from stages.trainer.loop.rows import PackedRows
from stages.trainer.model import growth, initialization, models
from stages.trainer.optim import optimizers
from stages.trainer.parallel import sharding
from stages.trainer.plan import curriculum, recipe
from stages.trainer.plan.hardware import Hardware
from stages.trainer.plan.recipe import Recipe

PACKED = Path("out/pack")
VALIDATION_ROWS = 64  # the first ones, the same for every rung and the target


@dataclass(frozen=True)
class PretrainWork:
    """Input of a pretraining: the plan, how to train, and on which rows."""

    run: Run
    plan: Plan
    recipe: Recipe
    hardware: Hardware
    train: PackedRows
    validation: PackedRows
    order: np.ndarray | None = None  # int64 (steps * batch rows,): rows to train on, one after another; None: by chance


def load_packed() -> tuple[PackedRows, PackedRows]:
    """Return the rows to train on and the held-out rows that a pretraining measures."""
    return PackedRows(load_rows(PACKED / "train")), PackedRows(load_rows(PACKED / "validation"), VALIDATION_ROWS)


def pretrain_stage(run: Run, plan: Plan, dtype: str | None) -> dict[str, float] | None:
    """Pretrain on out/pack, write the curves and return the losses at the end; None in a process that only helped.

    Args:
        run: of the stage `pretrain`, or of a rung of the ladder.
        plan: what to train.
        dtype: of the model that is written to the stage's out; None: no model is kept.
    """
    train, validation = load_packed()

    def resolve(machine: Hardware) -> Recipe:
        if plan.mup_base_width:
            optimizers.width_power(run.params.trainer.optimizer)
        one_document = train.one_document and validation.one_document
        return recipe.resolve(
            machine, Shape.of(plan.model), plan.batch_rows, run.params.pack.row_tokens, run.params.trainer,
            one_document,
        )  # fmt: skip

    def work(chosen: Recipe, machine: Hardware) -> tuple[CausalTrainer, PreTrainedTokenizerBase, History]:
        tokenizer = models.load_tokenizer(Path("out/tokenizer"))
        init = models.initial(Path(run.params.init), tokenizer)
        trainer, history = pretrain(PretrainWork(run, plan, chosen, machine, train, validation), tokenizer, init)
        return trainer, tokenizer, history

    history = fit.train_stage(run, resolve, work, dtype)
    return None if history is None else _report(run.reports, history)


def _report(reports: Path, history: History) -> dict[str, float]:
    write_curve(reports / "loss.csv", history, ["loss", "learning_rate", "grad_norm"])
    write_points(reports / "validation.csv", history, "eval_loss")
    return {"train_loss": final(history, "loss"), "validation_loss": final(history, "eval_loss", 0)}


def pretrain(
    work: PretrainWork, tokenizer: PreTrainedTokenizerBase, init: Path | None
) -> tuple[CausalTrainer, History]:
    """Pretrain and return the trainer of the full model and the history of all steps.

    Args:
        init: folder of a model to continue; None: a new model.
    """
    run, plan = work.run, work.plan
    if order := curriculum.ORDERS[run.params.pretrain.order]:
        assert isinstance(work.train.rows, Rows)
        hard = curriculum.difficulty(work.train.rows, tokenizer.get_vocab())
        work = replace(work, order=order(hard, plan.steps * plan.batch_rows))
    set_seed(run.params.seed)
    layers = plan.model["num_hidden_layers"]
    shallow = growth.start_layers(layers, run.params.pretrain.layers_from)
    if init is not None:
        return _train(work, models.load_initial(init, tokenizer), 0, plan.steps)
    if shallow == layers:
        return _train(work, _create(plan, tokenizer, layers), 0, plan.steps)
    model, history = _shallow(work, tokenizer, shallow)
    grown = growth.deepen(model, layers)
    if mup := _mup(plan, grown):
        initialization.rescale(grown, mup, _mup(plan, model))
    trainer, rest = _train(work, grown, growth.grown_at(plan.steps), plan.steps)
    return trainer, history + rest


def _create(plan: Plan, tokenizer: PreTrainedTokenizerBase, layers: int) -> PreTrainedModel:
    """Return a new model of the plan's width and ``layers`` layers."""
    model = models.create(plan.model | {"num_hidden_layers": layers}, tokenizer)
    if mup := _mup(plan, model):
        initialization.rescale(model, mup)
    return model


def _mup(plan: Plan, model: PreTrainedModel) -> Mup | None:
    """Return the parametrization of ``model``; None: standard."""
    return Mup.of(Shape.of(model.config.to_dict()), plan.mup_base_width) if plan.mup_base_width else None


def _shallow(work: PretrainWork, tokenizer: PreTrainedTokenizerBase, layers: int) -> tuple[PreTrainedModel, History]:
    """Return the model of ``layers`` layers after its share of the steps, and their history.

    It is kept in the scratch folder: a run that is stopped later does not train it again.
    """
    folder = work.run.scratch / "shallow"
    if not (folder / "model").exists():
        model = _create(work.plan, tokenizer, layers)
        part = replace(work, run=replace(work.run, scratch=folder))
        trainer, history = _train(part, model, 0, growth.grown_at(work.plan.steps))

        def write(save: Callable[[Path], None], needed: int) -> None:
            with atomic_folder(folder / "model") as aside:
                save(aside)
                save_history(history, aside)

        export.save_trained(trainer, tokenizer, write)
    return models.load(folder / "model")[0], load_history(folder / "model")


def _rows(work: PretrainWork, first_step: int, last_step: int) -> Dataset:
    """Return the rows of the steps between two, in order if there is one."""
    if work.order is None:
        return work.train
    batch = work.plan.batch_rows
    return Subset(work.train, work.order[first_step * batch : last_step * batch])


def _train(
    work: PretrainWork, model: PreTrainedModel, first_step: int, last_step: int
) -> tuple[CausalTrainer, History]:
    """Train ``model`` from one step of the plan's schedule to another; return its trainer and history."""
    run, plan, recipe, params = work.run, work.plan, work.recipe, work.run.params.pretrain
    row_tokens, steps = run.params.pack.row_tokens, plan.steps
    trainer = CausalTrainer(
        model=model,
        recipe=recipe,
        first_step=first_step,
        schedule_steps=steps,
        row_parts=lambda step: growth.row_parts(step, steps, row_tokens, params.row_tokens_from),
        mup=_mup(plan, model),
        train_dataset=_rows(work, first_step, last_step),
        eval_dataset=work.validation,
        args=TrainingArguments(
            **fit.training_arguments(run, plan.learning_rate, params.warmup),
            **recipe.arguments(),
            **sharding.sharding_arguments(recipe),
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
    if profiling.profile_wanted() and worker.rank() == 0:
        assert isinstance(run.spool, Spool)
        trainer.add_callback(profiling.Profile(run.spool.folder / "artifacts" / "profile"))
    shape = Shape.of(model.config.to_dict())
    meter = Meter(shape, work.hardware, plan.batch_tokens, row_tokens, trainer)
    history = fit.fit(trainer, run, run.stage, meter, first_step, recipe.params.local_steps)
    return trainer, history
