"""Run a Trainer as a stage does: resumed where it was stopped, recorded step by step."""

import csv
import math
from pathlib import Path

from transformers import Trainer, TrainerCallback

from stages.contract import Progress, Run, UserError
from stages.trainer.checkpoints import Checkpoints, latest

CURVE_POINTS = 200
# What depends on the machine or restarts with a resume stays out of files that DVC tracks.
VOLATILE = ("runtime", "per_second", "num_tokens", "epoch", "total_flos")


def arguments(run: Run, learning_rate: float, warmup: float) -> dict:
    """Keyword arguments every trainer shares (transformers.TrainingArguments).

    The rate rises over the first ``warmup`` share of the steps and falls as a cosine to a tenth of its peak.
    """
    return {
        "output_dir": str(run.scratch / "partial"),
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "warmup_steps": warmup,
        "seed": run.params.seed,
        "data_seed": run.params.seed,
        "logging_steps": 1,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "remove_unused_columns": False,
        "use_cache": False,
    }


def fit(trainer: Trainer, run: Run, label: str) -> list[dict]:
    """Train to the end and return the log history, one entry a step, free of anything machine-dependent.

    Raises:
        Preempted: stopped by a signal, with a checkpoint.
        UserError: the loss is not finite.
    """
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Record(run, label))
    trainer.add_callback(Checkpoints(run.scratch))
    checkpoint = latest(run.scratch)
    if checkpoint:
        print(f"{label}: resuming from step {checkpoint.name.split('-')[1]}", flush=True)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return [{k: v for k, v in entry.items() if not _volatile(k)} for entry in trainer.state.log_history]


class Record(TrainerCallback):
    """Sends every logged value to the run's spool and prints progress."""

    def __init__(self, run: Run, label: str):
        self.run, self.label = run, label
        self.progress: Progress | None = None

    def on_step_end(self, args, state, control, **kwargs):
        if self.progress is None:  # the first step also pays for warming up and would spoil the rate
            self.progress = Progress(self.label, state.max_steps, "steps", done=state.global_step)
            return
        loss = next((e["loss"] for e in reversed(state.log_history) if "loss" in e), math.nan)
        self.progress.step(1, f"loss {loss:.3f}")

    def on_log(self, args, state, control, logs=None, **kwargs):
        logs = {k: v for k, v in (logs or {}).items() if isinstance(v, int | float)}
        if not math.isfinite(logs.get("loss", 0.0)):
            raise UserError(f"the loss is {logs['loss']} at step {state.global_step}. Lower the learning rate.")
        self.run.log(state.global_step, **logs)


def write_curve(path: Path, history: list[dict], columns: list[str]) -> None:
    """A plot of at most CURVE_POINTS rows: step and the mean of each column over the steps since the last row."""
    steps = [entry for entry in history if "loss" in entry]
    width = max(1, math.ceil(len(steps) / CURVE_POINTS))
    with path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["step", *columns])
        for i in range(0, len(steps), width):
            window = steps[i : i + width]
            means = [sum(entry[c] for entry in window) / len(window) for c in columns]
            rows.writerow([window[-1]["step"], *(f"{mean:.6g}" for mean in means)])


def write_points(path: Path, history: list[dict], column: str) -> None:
    """A plot of every entry that has ``column``."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["step", column])
        rows.writerows([entry["step"], f"{entry[column]:.6g}"] for entry in history if column in entry)


def final(history: list[dict], column: str, share: float = 0.05) -> float:
    """Mean of ``column`` over the last ``share`` of the steps."""
    values = [entry[column] for entry in history if column in entry]
    tail = values[-max(1, round(len(values) * share)) :]
    return round(sum(tail) / len(tail), 6)


def _volatile(key: str) -> bool:
    return any(word in key for word in VOLATILE)
