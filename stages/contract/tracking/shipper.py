"""python -m stages.contract.tracking.shipper HOME: send spools to MLflow until none is left, then exit.

One process serves every stage of a clone (a lock sees to that), so that mlflow is imported once a pipeline instead of
once a stage, and never in a process that trains. While MLflow does not answer or refuses, spools wait; the next stage
starts a shipper again.
"""

import contextlib
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from stages.contract import secrets
from stages.contract.files import Locked, locked
from stages.contract.process.background import give_way
from stages.contract.tracking import delivery, locations
from stages.contract.tracking.refusals import explain_refusal, is_refusal, is_silence
from stages.contract.tracking.shipment import alive, dormant, ship
from stages.contract.tracking.tracker import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["connect", "main", "ship"]

IDLE_SECONDS = 10.0  # with nothing to send: the next stage of a pipeline comes sooner, and importing mlflow takes 4 s
GIVE_UP_SECONDS = 60.0  # with something to send, nobody writing, and no answer
LONGEST_PAUSE = 16.0  # seconds between two attempts while MLflow fails; it doubles from one second on
DAMAGED = (KeyError, TypeError, AttributeError, ValueError)  # of a spool that another version wrote, or a crash tore


def main(home: Path) -> None:
    """Send the spools of ``home`` until none is left."""
    with contextlib.suppress(Locked), locked(locations.shipper_lock(home)):
        sys.stdout, sys.stderr = secrets.Redacted(sys.stdout), secrets.Redacted(sys.stderr)
        give_way(10)
        _serve(home)


def _serve(home: Path) -> None:
    """Ship every spool again and again until all are gone and no stage is writing."""
    client, trouble, pause = None, "", 1.0
    last_success = quiet_since = time.monotonic()
    while True:
        folders = [f for f in sorted(locations.spools(home).glob("*"), key=_order) if not dormant(f)]
        failure = None
        if folders:
            quiet_since = time.monotonic()
            try:
                client = client or connect(home)
                failure = _ship_each(client, folders, home)
            except Exception as error:  # whatever the tracker does, the pipeline must not feel it
                failure = error
            trouble = _note(home, failure, trouble)
        elif time.monotonic() - quiet_since > IDLE_SECONDS:
            return
        if failure is None:
            last_success, pause = time.monotonic(), 1.0
        elif not any(map(alive, folders)) and (
            is_refusal(failure) or time.monotonic() - last_success > GIVE_UP_SECONDS
        ):
            return
        else:
            pause = min(2 * pause, LONGEST_PAUSE)
        time.sleep(pause)


def _order(folder: Path) -> tuple[bool, str]:
    """Sort stages by their start, since later ones have figures of earlier ones' models, and pipelines after them."""
    return folder.name.startswith("pipeline-"), folder.name.rpartition("-")[2]


def _ship_each(client: "MlflowClient", folders: list[Path], home: Path) -> Exception | None:
    """Ship the new lines of the spools ``folders``; return the last failure.

    The failure of one spool does not hold up the others, unless the tracker does not answer at all.
    """
    failure: Exception | None = None
    for folder in folders:
        try:
            refusals = ship(client, folder, home)
        except DAMAGED as error:
            if isinstance(error, OSError):  # requests' own kind of ValueError
                failure = error
                continue
            traceback.print_exc()
            refusals = [_reject(folder, home, error)]
        except Exception as error:
            failure = error
            if is_silence(error) or is_refusal(error):
                return failure
            continue
        if refusals:
            _note(home, None, "", refusals)
    return failure


def _reject(folder: Path, home: Path, error: Exception) -> str:
    """Move an unreadable spool to .verdict/rejected-spools and return one line to print."""
    place = home / ".verdict" / "rejected-spools" / folder.name
    place.parent.mkdir(exist_ok=True)
    shutil.move(folder, place)
    return f"A spool cannot be read ({type(error).__name__}: {error}), so MLflow does not get it; it is in {place}."


def _note(home: Path, failure: Exception | None, before: str, refusals: list[str] | tuple[str, ...] = ()) -> str:
    """Record the tracker's state for terminals, and news in shipper.log. Return the trouble, "" for none."""
    trouble = explain_refusal(failure, home) if failure else ""
    delivery.note(home, trouble, list(refusals))
    for line in (*refusals, *([trouble] if trouble != before and trouble else [])):
        print(time.strftime("%Y-%m-%d %H:%M:%S"), line, flush=True)
    return trouble


if __name__ == "__main__":
    main(Path(sys.argv[1]))
