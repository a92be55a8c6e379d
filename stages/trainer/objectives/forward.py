"""Log-probabilities of answers under a model that is not trained, on all devices.

One device measures all micro-batches. Several get a part of them each, and the values are the same: no micro-batch
knows of another.
"""

import os
from pathlib import Path

import numpy as np

from stages.contract import Progress, Run
from stages.contract.files import atomic_write
from stages.contract.process import worker
from stages.trainer.loop.rows import PackedRows
from stages.trainer.model import models
from stages.trainer.objectives.preference import forward_recipe, reference_logps
from stages.trainer.parallel.launching import launch, passed_recipe
from stages.trainer.plan import hardware
from stages.trainer.plan.recipe import Recipe


def measure_logps(run: Run, start: Path, rows: PackedRows) -> np.ndarray:
    """Return the log-probability of every answer in ``rows``, fp32 [R, M], in nats, under the model in ``start``.

    On several devices the stage's module runs once for each; it then calls `measure_part` on the same rows.
    """
    machine = hardware.detect_hardware()
    recipe = forward_recipe(start, rows, run.params.trainer, machine)
    parts = min(machine.count, -(-len(rows) // recipe.micro_batch))
    if parts == 1:
        return _measure(run, start, rows, recipe)
    launch(run, machine, parts, recipe)
    return np.concatenate([np.load(_file(run, part), allow_pickle=False) for part in range(parts)])


def measure_part(run: Run, start: Path, rows: PackedRows) -> None:
    """Measure this worker's part of the micro-batches, for its parent."""
    hardware.detect_hardware()  # takes this worker's own GPU
    logps = _measure(run, start, rows, passed_recipe(), worker.rank(), int(os.environ["WORLD_SIZE"]))
    with atomic_write(_file(run, worker.rank())) as file:
        np.save(file, logps, allow_pickle=False)


def _measure(run: Run, start: Path, rows: PackedRows, recipe: Recipe, part: int = 0, parts: int = 1) -> np.ndarray:
    progress = Progress(f"{run.stage}, log-probabilities", total=-(-len(rows) // parts), unit="rows")
    return reference_logps(models.load(start)[0], rows, recipe, progress.step, part, parts)


def _file(run: Run, part: int) -> Path:
    return run.scratch / f"logps-{part}.npy"
