"""Take a snapshot of params, code and inputs before a stage reads anything, and check it until the stage ends.

DVC records inputs as they are once the stage has ended (dvc#11058). A stage whose inputs were touched in the meantime
therefore fails, also if they have been put back: it may have read the others.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import stages
from stages.contract.errors import UserError
from stages.contract.identity import Identity, identify, identity_of, input_paths, opened
from stages.contract.inputs import TICK, InputError, Stamp, settle_stamps, stamps
from stages.contract.params import Params, load_params
from stages.contract.scratch import drop_unchecked, mark_checked

SECONDS = 5.0  # between two checks of the inputs
CONFIGURATION = ("params.yaml", "dvc.yaml")


@dataclass(frozen=True)
class Snapshot:
    """The parameters, code and inputs of a stage, as they were before it read anything."""

    identity: Identity
    params: Params
    root: Path
    inputs: list[Path]  # files and folders; params.yaml, read once, is none
    stamps: dict[str, Stamp]  # of all there is in them
    configuration: dict[str, Stamp]

    def touched(self) -> list[str]:
        """Return the inputs that were edited, replaced, added or removed since, restored ones included."""
        try:
            now = stamps(self.inputs)
        except InputError as e:
            return [e.path]
        paths = self.stamps.keys() | now.keys()
        touched = sorted(path for path in paths if self.stamps.get(path) != now.get(path))
        # A folder's stamp says no more than the file in it that came or went.
        return [path for path in touched if not any(other.startswith(f"{path}/") for other in touched)]

    def changed(self) -> list[str]:
        """Return the differences from the snapshot: touched inputs, values of params, the command."""
        changed = self.touched()
        if not changed and stamps(map(Path, CONFIGURATION)) != self.configuration:
            now = identify(self.identity.stage, self.root)
            before, after = self.identity.deps | self.identity.params, now.deps | now.params
            changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
            if not changed and now.fingerprint != self.identity.fingerprint:
                changed = ["the command"]
        return changed


def take(name: str, root: Path) -> Snapshot:
    """Take the snapshot of stage ``name`` of the repository ``root``, the current folder.

    Raises:
        UserError: params.yaml, dvc.yaml or an input is missing, is none that can be used, or changed meanwhile.
    """
    configuration = stamps(map(Path, CONFIGURATION))
    settle_stamps(configuration)
    params = load_params()
    with opened(name, root) as stage:
        inputs = input_paths(stage)
        before = stamps(inputs)
        settle_stamps(before)
        _refuse_edited_code(before)
        identity = identity_of(stage, root)
    snapshot = Snapshot(identity, params, root, inputs, before, configuration)
    changed = snapshot.touched() or ["params.yaml"] * (stamps(map(Path, CONFIGURATION)) != configuration)
    if changed:
        raise UserError(f"{_named(changed)} changed while the stage began. Run it again.")
    return snapshot


@contextlib.contextmanager
def unchanged(snapshot: Snapshot, scratch: Path) -> Iterator[None]:
    """Interrupt the block when an input is touched, and let nothing that was made afterwards be used.

    Raises:
        UserError: something of ``snapshot`` changed; what the block raises may follow from it and is left out.
    """
    ended = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def watch() -> None:
        pause = SECONDS
        while not ended.wait(pause):
            began = time.time_ns()
            if snapshot.touched():
                signal.pthread_kill(main, signal.SIGUSR1)
                return
            mark_checked(scratch, began)
            pause = max(SECONDS, 100 * (time.time_ns() - began) / 1e9)  # at most a hundredth of the stage's time

    # SIGINT would end the process at once, or be training's order to write a checkpoint.
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    watcher = threading.Thread(target=watch, name="inputs", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        signal.signal(signal.SIGUSR1, before)
        refuse_changed(snapshot, scratch)


def refuse_changed(snapshot: Snapshot, scratch: Path) -> None:
    """Raise UserError if anything of ``snapshot`` changed, and remove the work that may be made of something else."""
    began = time.time_ns()
    changed = snapshot.changed()
    if not scratch.exists():  # the stage is done with it
        left = False
    elif changed:
        left = drop_unchecked(scratch)
    else:
        mark_checked(scratch, began)
    if changed:
        again = "Run it again; with the old inputs it resumes from before the change." if left else "Run it again."
        raise UserError(
            f"{_named(changed)} changed while the stage ran, so its result belongs to no recorded inputs and is not "
            f"kept. {again}"
        )


def _refuse_edited_code(stamped: dict[str, Stamp]) -> None:
    """Raise UserError if a file of code was written after Python had begun to import the stage's."""
    for path, stamp in stamped.items():
        if path.endswith(".py") and stamp.changed > stages.BEGUN - TICK // 2:
            raise UserError(f"{path} changed while the stage began. Run it again.")


def _named(changed: list[str]) -> str:
    return ", ".join(changed[:3]) + (f" and {len(changed) - 3:,} more" if len(changed) > 3 else "")
