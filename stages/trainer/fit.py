"""Run a Trainer as a stage does: resumed where it was stopped, recorded step by step."""

import csv
import json
import math
import os
from pathlib import Path

from transformers import Trainer, TrainerCallback

from stages.contract import Progress, Run, UserError
from stages.trainer import parallel
from stages.trainer.checkpoints import Checkpoints, latest
from stages.trainer.meter import Meter

CURVE_POINTS = 200
# What depends on the machine or restarts with a resume stays out of files that DVC tracks.
VOLATILE = ("runtime", "per_second", "step_time", "num_tokens", "epoch", "total_flos")


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
    """Steps between log entries: VERDICT_LOG_STEPS, or every step, on CUDA every tenth, since each waits for the
    device. It bears no identity, but on CUDA nothing is byte for byte the same anyway."""
    import torch

    value = os.environ.get("VERDICT_LOG_STEPS", "")
    if not value:
        return 10 if torch.cuda.is_available() else 1
    if not value.isdigit() or int(value) < 1:
        raise UserError(f"VERDICT_LOG_STEPS is {value!r}; it must be a number of steps from 1 on.")
    return int(value)


def fit(
    trainer: Trainer, run: Run, label: str, meter: Meter | None = None, first_step: int = 0, every: int = 1
) -> list[dict]:
    """Train to the end and return the log history, an entry a logged step, free of anything machine-dependent.

    Args:
        first_step: steps that came before, in another trainer; the log counts on from there.
        every: checkpoints come at multiples of so many steps.

    Raises:
        Preempted: stopped by a signal, with a checkpoint.
        UserError: the loss is not finite.
    """
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Record(run, label, meter, first_step))
    trainer.add_callback(Checkpoints(run.scratch, every))
    checkpoint = latest(run.scratch)
    if checkpoint:
        print(f"{label}: resuming from step {checkpoint.name.split('-')[1]}", flush=True)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.is_fsdp_enabled:
        parallel.assert_sharded(trainer.model)
    if hasattr(trainer.optimizer, "eval"):
        trainer.optimizer.eval()  # schedule_free's weights to use are not those it trains
    history = [{k: v for k, v in entry.items() if not _volatile(k)} for entry in trainer.state.log_history]
    return [entry | {"step": entry["step"] + first_step} for entry in history]


class Record(TrainerCallback):
    """Sends every logged value to the run's spool and prints progress."""

    def __init__(self, run: Run, label: str, meter: Meter | None = None, first_step: int = 0):
        self.run, self.label, self.meter, self.first_step = run, label, meter, first_step
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
        speed = self.meter.read(state.global_step) if self.meter and "loss" in logs else {}
        self.run.log(self.first_step + state.global_step, **logs, **speed)


def write_history(history: list[dict], folder: Path) -> None:
    (folder / "history.json").write_text(json.dumps(history))


def read_history(folder: Path) -> list[dict]:
    return json.loads((folder / "history.json").read_text())


def write_curve(path: Path, history: list[dict], columns: list[str]) -> None:
    """A plot of at most CURVE_POINTS rows: step and the mean of each column over the steps since the last row. A column
    that this history does not have is empty; of the others, an entry has all or does not count."""
    known = {c for c in columns if any(c in entry for entry in history)}
    steps = [entry for entry in history if known and entry.keys() >= known | {"loss"}]
    width = max(1, math.ceil(len(steps) / CURVE_POINTS))
    with path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["step", *columns])
        for i in range(0, len(steps), width):
            window = steps[i : i + width]
            rows.writerow([window[-1]["step"], *(_mean(window, column) for column in columns)])


def _mean(entries: list[dict], column: str) -> str:
    values = [entry[column] for entry in entries if column in entry]
    return f"{sum(values) / len(values):.6g}" if values else ""


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
