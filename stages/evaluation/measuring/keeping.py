"""Keep what was measured on a model in a folder, for the stage's other processes and for a run after a kill."""

import json
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from stages.contract.files import atomic_folder
from stages.evaluation.measuring.divergence import Predictions
from stages.evaluation.measuring.measured import Answer, Measured

ARRAYS, REST = "arrays.npz", "measured.json"


def save_measured(measured: Measured, folder: Path) -> None:
    """Write ``measured`` to ``folder``, whole or not at all."""
    values = {field.name: getattr(measured, field.name) for field in fields(measured)}
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    predictions = measured.predictions
    if predictions:
        arrays |= predictions._asdict()
    rest = {name: value for name, value in values.items() if name not in arrays and name != "predictions"}
    rest["answers"] = [asdict(answer) for answer in measured.answers]
    with atomic_folder(folder) as part:
        np.savez(part / ARRAYS, allow_pickle=False, **arrays)
        (part / REST).write_text(json.dumps(rest), encoding="utf-8")


def load_measured(folder: Path) -> Measured:
    """Return what `save_measured` wrote, with the same bits."""
    with np.load(folder / ARRAYS, allow_pickle=False) as file:
        arrays = dict(file)
    predictions = Predictions(*map(arrays.pop, Predictions._fields)) if "head" in arrays else None
    rest = json.loads((folder / REST).read_text(encoding="utf-8"))
    rest["answers"] = [Answer(**answer) for answer in rest["answers"]]
    return Measured(**arrays, **rest, predictions=predictions)
