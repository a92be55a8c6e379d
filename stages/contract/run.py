"""One execution of a stage: its identity, its outs, its tracked run, its exit code."""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stages.contract import places, tracking, worker
from stages.contract.errors import Preempted, UserError
from stages.contract.identity import Identity, identify, out_hashes
from stages.contract.params import Params, load_params
from stages.contract.spool import NoSpool, Spool, flatten, open_spool
from stages.contract.starter import age, end_with_starter
from stages.contract.worker import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_PREEMPTED


@dataclass(frozen=True)
class Run:
    """What a stage's ``main`` gets to work with."""

    stage: str
    params: Params
    out: Path  # out/<stage>: data and models for later stages
    reports: Path  # reports/<stage>: metrics.json and plots
    scratch: Path  # survives a kill, keyed by the stage's identity, removed on success
    spool: Spool | NoSpool

    @property
    def in_flow(self) -> bool:
        """Whether a Prefect flow started this execution, and not `dvc repro`."""
        return "VERDICT_PIPELINE" in os.environ

    def log(self, step: int, **metrics: float) -> None:
        """Record metrics at ``step`` for the tracker; never blocks and never fails."""
        self.spool.log(step, metrics)

    def report(self, metrics: dict, headline: tuple[str, ...] = ()) -> None:
        """Write reports/<stage>/metrics.json, all of ``metrics`` (nested; numbers and strings), which MLflow gets,
        and headline.json, the few that `dvc metrics` and `dvc exp show` have room for: those named, dotted where
        nested, or else every number at the top."""
        flat = flatten(metrics)
        names = [name for name in headline if name in flat] if headline else [name for name in flat if "." not in name]
        for file, value in (("metrics.json", metrics), ("headline.json", {name: flat[name] for name in names})):
            text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
            (self.reports / file).write_text(text + "\n", encoding="utf-8")


def run_stage(name: str, main: Callable[[Run], None]) -> None:
    """Execute ``main`` as DVC stage ``name`` of the repository in the current folder, and exit.

    Exit codes: 0 done, 75 preempted with a checkpoint on disk, anything else failed.
    """
    if len(sys.argv) > 1:  # a stage takes no arguments, and running it replaces its outs
        print(f"{sys.modules['__main__'].__doc__}\nParameters: params.yaml. Run it with `dvc repro {name}`.")
        sys.exit(0 if sys.argv[1] in ("-h", "--help") else 2)
    if worker.is_worker():
        worker.leave(_work(name, main))
    try:
        sys.exit(_execute(name, main))
    except UserError as e:
        for line in str(e).splitlines():
            print(f"{name}: {line}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except Preempted as e:
        print(f"{name}: {e}", file=sys.stderr)
        sys.exit(EXIT_PREEMPTED)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def _execute(name: str, main: Callable[[Run], None]) -> int:
    end_with_starter()
    root = Path.cwd()
    params = load_params()
    identity = identify(name, root)
    home = places.home(root, identity.cache)
    with locked_scratch(identity) as scratch:
        spool = open_spool(places.spools(home), _description(identity, root))
        run = Run(name, params, _empty(Path("out") / name), _empty(Path("reports") / name), scratch, spool)
        tracking.start_shipper(home)
        try:
            main(run)
            _unchanged(identity, root, scratch)
        except (Preempted, KeyboardInterrupt):
            raise  # the spool stays open: the run goes on in it when it resumes
        except BaseException:
            spool.end("FAILED", {}, {}, run.reports)
            raise
        metrics = _metrics(run.reports) | {"stage_seconds": age()}
        spool.end("FINISHED", metrics, out_hashes(name, root), run.reports)
        tracking.start_shipper(home)
        shutil.rmtree(scratch)
    return 0


def _work(name: str, main: Callable[[Run], None]) -> int:
    """``main`` in one of several processes, in the folders of the parent, which does all the rest."""
    worker.die_with_parent()
    spool = Spool(worker.spool()) if worker.rank() == 0 else NoSpool()
    try:
        main(Run(name, load_params(), Path("out") / name, Path("reports") / name, worker.scratch(), spool))
    except BaseException as e:
        return worker.record(e)
    return 0


def _description(identity: Identity, root: Path) -> dict:
    return {
        "stage": identity.stage,
        "fingerprint": identity.fingerprint,
        "pipeline": tracking.pipeline_key(),
        "params": {key: str(value) for key, value in identity.params.items()},
        "datasets": {path: md5 for path, md5 in identity.deps.items() if not path.endswith(".py")},
        "tags": {"git.revision": _git_revision(root)},
    }


def _git_revision(root: Path) -> str:
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "none"


def _metrics(reports: Path) -> dict[str, float]:
    path = reports / "metrics.json"
    return flatten(json.loads(path.read_text())) if path.exists() else {}


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _unchanged(identity: Identity, root: Path, scratch: Path) -> None:
    """DVC would record the inputs as they are at the end, not those the stage read (dvc#11058)."""
    now = identify(identity.stage, root)
    if now.fingerprint == identity.fingerprint:
        return
    before = identity.deps | identity.params
    after = now.deps | now.params
    changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k)) or ["cmd"]
    raise UserError(
        f"{', '.join(changed)} changed while the stage ran, so its result belongs to no recorded inputs and is "
        f"not kept. Finished work stays in {scratch}; put the old inputs back to use it, or run again."
    )


def forget(identity: Identity) -> None:
    """Remove the checkpoints of unfinished work that nobody will go on with; not those of a process at work."""
    with contextlib.suppress(UserError), locked_scratch(identity) as folder:
        shutil.rmtree(folder)


@contextlib.contextmanager
def locked_scratch(identity: Identity) -> Iterator[Path]:
    """The folder for checkpoints of this identity, locked: one process an identity, also across worktrees."""
    folder = places.checkpoints(identity.cache) / identity.stage / identity.fingerprint[:32]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"the same work is already running (lock: {folder / '.lock'}).") from None
        yield folder
