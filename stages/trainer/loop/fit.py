"""Fit of a model as a stage does it: resumed from its last checkpoint, recorded step by step."""

import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from stages.contract import Progress, Run, UserError
from stages.contract.process import worker
from stages.trainer.loop import export, finished
from stages.trainer.loop.history import History, from_log
from stages.trainer.loop.meter import Meter
from stages.trainer.parallel import sharding
from stages.trainer.parallel.launching import launch, passed_recipe
from stages.trainer.plan import hardware
from stages.trainer.plan.hardware import Hardware
from stages.trainer.plan.recipe import Recipe
from stages.trainer.saving import sealing
from stages.trainer.saving.background import background_writer
from stages.trainer.saving.checkpoints import Checkpoints, latest
from stages.trainer.saving.resharding import refuse_other_writer


def training_arguments(run: Run, learning_rate: float, warmup: float) -> dict[str, Any]:
    """Return keyword arguments of transformers.TrainingArguments that all trainers share.

    Args:
        learning_rate: AdamW's, at the peak.
        warmup: share of the steps over which the rate rises.
    """
    return {
        "output_dir": str(run.scratch / "partial"),
        "learning_rate": learning_rate,
        "warmup_steps": warmup,
        "seed": run.params.seed,
        "data_seed": run.params.seed,
        "logging_steps": logging_steps(),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "use_cache": False,
    }


def logging_steps() -> int:
    """Return the steps between log entries: VERDICT_LOG_STEPS, or 1, on CUDA 10, since each waits for the device.

    It bears no identity, but on CUDA nothing is byte for byte the same anyway.
    """
    value = os.environ.get("VERDICT_LOG_STEPS", "")
    if not value:
        return 10 if torch.cuda.is_available() else 1
    if not value.isdigit() or int(value) < 1:
        raise UserError(f"VERDICT_LOG_STEPS is {value!r}; it must be a number of steps from 1 on.")
    return int(value)


def train_stage(
    run: Run, resolve: Callable[[Hardware], Recipe],
    train: Callable[[Recipe, Hardware], tuple[Trainer, PreTrainedTokenizerBase, History]], dtype: str | None,
) -> History | None:  # fmt: skip
    """Train as a stage: choose a recipe, start the processes it asks for, and write the model to the stage's out.

    A stage on several devices runs its own module once for each (`launching`); each worker comes here again.

    Args:
        resolve: hardware -> recipe. Raises UserError before anything is loaded.
        train: (recipe, hardware) -> trainer, tokenizer, history.
        dtype: of the model that is written, see `export.save_trained`; None: no model is kept.

    Returns:
        The history; None in a worker that is not the first, and in the parent of workers.
    """
    if not worker.is_worker() and (history := finished.restore_finished(run)):
        return history
    machine = hardware.detect_hardware()
    recipe = passed_recipe() if worker.is_worker() else resolve(machine)
    if not worker.is_worker():
        print(recipe.table(), flush=True)
        if recipe.sharding != "none":
            launch(run, machine, recipe.processes, recipe)
            return None
    trainer, tokenizer, history = train(recipe, machine)
    if dtype:
        write = partial(finished.write, run=run, history=history)
        export.save_trained(trainer, tokenizer, write, dtype)
    return history if worker.rank() == 0 else None


def fit(
    trainer: Trainer, run: Run, label: str, meter: Meter | None = None, first_step: int = 0, every: int = 1
) -> History:
    """Train to the end and return the history.

    Args:
        label: name of the training on the terminal.
        meter: measures the speed, for the tracker.
        first_step: steps that came before, in another trainer; the history counts on from there.
        every: checkpoints are written at multiples of so many steps.

    Raises:
        Preempted: stopped by a signal, with a checkpoint.
        UserError: the loss is not finite.
    """
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(SpoolCallback(run, label, meter, first_step))
    checkpoints = Checkpoints(run.scratch, every, background_writer(trainer))
    trainer.add_callback(checkpoints)
    trainer._save_checkpoint = checkpoints.guard(trainer._save_checkpoint)
    checkpoint = latest(run.scratch)
    if checkpoint:
        refuse_other_writer(checkpoint, trainer.is_deepspeed_enabled)
        print(f"{label}: resuming from step {sealing.step_number(checkpoint)}", flush=True)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        checkpoints.release()
    if trainer.is_fsdp_enabled:
        sharding.assert_sharded(trainer.model)
    if hasattr(trainer.optimizer, "eval"):
        trainer.optimizer.eval()  # schedule_free's weights to use are not those it trains
    return from_log(trainer.state.log_history, first_step)


class SpoolCallback(TrainerCallback):
    """Send every logged value to the run's spool and print progress."""

    def __init__(self, run: Run, label: str, meter: Meter | None = None, first_step: int = 0) -> None:
        self.run, self.label, self.meter, self.first_step = run, label, meter, first_step
        self.progress: Progress | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.progress is None:  # the first step also pays for warming up and would spoil the rate
            self.progress = Progress(self.label, state.max_steps, "steps", done=state.global_step)
            return
        loss = next((e["loss"] for e in reversed(state.log_history) if "loss" in e), math.nan)
        self.progress.step(1, f"loss {loss:.3f}")

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, float] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        logs = {k: v for k, v in (logs or {}).items() if isinstance(v, int | float)}
        if not math.isfinite(logs.get("loss", 0.0)):
            raise UserError(f"the loss is {logs['loss']} at step {state.global_step}. Lower the learning rate.")
        speed = self.meter.read(state.global_step) if self.meter and "loss" in logs else {}
        self.run.log(self.first_step + state.global_step, **logs, **speed)
