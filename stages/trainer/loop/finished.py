"""A trained model on a full disk: kept with the checkpoints; the next run only writes it to its out."""

import shutil
from collections.abc import Callable
from pathlib import Path

from stages.contract import Run, UserError, disk
from stages.contract.files import atomic_folder, remove
from stages.trainer.loop import history as log
from stages.trainer.loop.history import History
from stages.trainer.saving import sealing

FOLDER = "trained"


def write(save: Callable[[Path], None], needed: int, run: Run, history: History) -> None:
    """Write the model to the stage's out.

    Args:
        save: writes the model to a folder.
        needed: bytes of its weights.
        history: of its training.

    Raises:
        UserError: there is no room, or the out cannot be written. The model is then kept in the scratch folder; where
            there is no room either, the newest checkpoint is.
    """
    try:
        save(run.out)
        return
    except Exception as e:
        if not (reason := disk.refusal(e)):
            raise
    _empty(run.out)
    line = disk.explain("the trained model", run.out, needed, reason)
    if _keep(save, run, history, sealing.KEEP) or _keep(save, run, history, 1):
        raise UserError(f"{line}. It is kept in {run.scratch / FOLDER}; run again, which only writes it.")
    step = max(map(sealing.step_number, sealing.numbered(run.scratch)), default=0)
    raise UserError(f"{line}, nor is there for keeping it in {run.scratch}. The next run trains on from step {step}.")


def restore_finished(run: Run) -> History | None:
    """Write the model that an earlier run could not write to its out, and return its history; None if none is kept.

    Raises:
        UserError: there still is no room.
    """
    kept = run.scratch / FOLDER
    if not kept.is_dir() or sealing.damage(kept):
        return None
    print(f"{run.stage}: writing the model that an earlier run trained", flush=True)
    try:
        shutil.copytree(
            kept, run.out, ignore=shutil.ignore_patterns(log.FILE, sealing.MANIFEST, sealing.SEAL), dirs_exist_ok=True
        )
    except OSError as e:  # copytree's own error is one of these, without a number
        needed = disk.size(kept)
        _empty(run.out)
        line = disk.explain("the trained model", run.out, needed, disk.refusal(e))
        raise UserError(f"{line}. It is kept in {kept}; run again, which only writes it.") from None
    return log.load_history(kept)


def _keep(save: Callable[[Path], None], run: Run, history: History, checkpoints: int) -> bool:
    """Keep the model in the scratch folder, with only so many ``checkpoints``; return whether there was room."""
    sealing.prune(run.scratch, keep=checkpoints)
    try:
        with atomic_folder(run.scratch / FOLDER) as folder:
            save(folder)
            log.save_history(history, folder)
            sealing.seal(folder)
    except Exception as e:
        if not disk.refusal(e):
            raise
        return False
    return True


def _empty(folder: Path) -> None:
    """Empty ``folder`` of a model written in part."""
    for path in folder.iterdir():
        remove(path)
