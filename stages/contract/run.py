"""Execute a stage: identity, outs, tracked run, exit code."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages import EXIT_INTERRUPTED, EXIT_PREEMPTED, end_on_signals
from stages.contract import disk, snapshot
from stages.contract.accounting import Account, Figures
from stages.contract.errors import Preempted, UserError
from stages.contract.identity import Identity, is_code, matrix_name, out_hashes
from stages.contract.params import Params
from stages.contract.process import worker
from stages.contract.process.lifetime import age, end_with_starter
from stages.contract.process.worker import EXIT_FAILED
from stages.contract.scratch import inherit, locked_scratch
from stages.contract.tracking import locations, pipelines
from stages.contract.tracking.spool import HEADLINE, NoSpool, Spool, flatten, open_spool

PATIENCE_SECONDS = 60  # twice a stage's grace for its checkpoint


@dataclass(frozen=True)
class Run:
    """The argument of a stage's ``main``: parameters, folders, and ways to report."""

    stage: str
    params: Params
    out: Path  # out/<stage>: data and models for later stages; of a matrix out/<stage>/<arguments>
    reports: Path  # reports/<stage>: metrics.json and plots; as out
    scratch: Path  # survives a kill, keyed by the stage's identity, removed on success
    spool: Spool | NoSpool
    accounts: dict[str, Figures] = field(default_factory=dict)  # of records, by source; see `account`
    arguments: Mapping[str, float] = field(default_factory=dict)  # of a stage in a matrix, from its command

    @property
    def in_flow(self) -> bool:
        """Whether a Prefect flow started this execution, and not `dvc repro`."""
        return "VERDICT_PIPELINE" in os.environ

    def log(self, step: int, **metrics: float) -> None:
        """Record metrics at ``step`` for the tracker; never blocks and never fails."""
        self.spool.log(step, metrics)

    def account(self, account: Account, max_rejected: float) -> None:
        """Print the counts of a source's used, rejected and dropped records; add them to the metrics as ``records``.

        Raises:
            UserError: more than the share ``max_rejected`` of the records was rejected.
        """
        account.check(max_rejected)
        if not worker.is_worker():  # its parent prints it
            print(account.line(), flush=True)
        self.accounts[account.source] = account.figures()

    def report(self, metrics: dict[str, Any], headline: Mapping[str, str] | None = None) -> None:
        """Write reports/<stage>/metrics.json and, of a stage whose figures people compare, headline.json.

        Args:
            metrics: nested; numbers and strings. MLflow gets every number.
            headline: name -> dotted key in ``metrics``, of the few figures that `dvc metrics show` and `dvc exp show`
                have room for. One that is not a number in ``metrics`` is left out.
        """
        metrics = metrics | ({"records": self.accounts} if self.accounts else {})
        self._write_json("metrics.json", metrics)
        if headline:
            flat = flatten(metrics)
            self._write_json(HEADLINE, {name: flat[key] for name, key in headline.items() if key in flat})

    def _write_json(self, file: str, value: dict[str, Any]) -> None:
        text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
        (self.reports / file).write_text(text + "\n", encoding="utf-8")


def run_stage(name: str, main: Callable[[Run], None], arguments: Sequence[str] = ()) -> None:
    """Execute ``main`` as DVC stage ``name`` of the repository in the current folder, and exit.

    Exit codes: 0 done, 75 preempted (the next run resumes from the finished work), anything else failed.

    Args:
        main: does the stage's work.
        arguments: names of the numbers in the stage's command, for a stage in a matrix; they name its outs.
    """
    end_on_signals(name)
    values = _numbers(sys.argv[1:])
    if values is None or len(values) != len(arguments):  # running a stage replaces its outs
        print(f"{sys.modules['__main__'].__doc__}\nParameters: params.yaml. Run it with `dvc repro {name}`.")
        sys.exit(0 if sys.argv[1:2] in (["-h"], ["--help"]) else 2)
    given = dict(zip(arguments, values, strict=True))
    if worker.is_worker():
        worker.leave(_work(name, main, given))
    try:
        sys.exit(_execute(name, main, given))
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
    except OSError as e:
        if (refused := disk.describe(e)) is None:
            raise
        print(f"{name}: {refused}", file=sys.stderr)
        sys.exit(EXIT_FAILED)


def _numbers(words: list[str]) -> list[float] | None:
    try:
        return [float(word) for word in words]
    except ValueError:
        return None


def _folders(name: str) -> tuple[Path, Path]:
    """Return out and reports of a stage; in a matrix, the command's arguments are part of them."""
    place = Path(name, "-".join(sys.argv[1:]))
    return Path("out") / place, Path("reports") / place


def _execute(name: str, main: Callable[[Run], None], given: Mapping[str, float]) -> int:
    end_with_starter()
    end_on_signals(name)
    root = Path.cwd()
    folders = _folders(name)
    if given:
        spec = sys.modules["__main__"].__spec__
        assert spec is not None
        name = matrix_name(["-m", spec.name, *sys.argv[1:]], root)
    taken = snapshot.take(name, root)
    home = locations.home(root)
    with locked_scratch(taken.identity, PATIENCE_SECONDS) as scratch:
        inherit(scratch, root, taken.stamps)
        spool = open_spool(locations.spools(home), _description(taken.identity, given, root))
        out, reports = map(_empty, folders)
        run = Run(name, taken.params, out, reports, scratch, spool, arguments=given)
        pipelines.start_shipper(home)
        _print_news(run, home)
        try:
            with snapshot.unchanged(taken, scratch):
                main(run)
                outs = out_hashes(name, root)
                disk.check_room(outs, root, taken.identity.cache)
        except (Preempted, KeyboardInterrupt):
            raise  # the spool stays open: a resumed run writes to it
        except BaseException:
            spool.end("FAILED", {}, {}, run.reports)
            raise
        metrics = _metrics(run.reports) | {"stage_seconds": age()}
        spool.end("FINISHED", metrics, outs, run.reports)
        pipelines.start_shipper(home)
        _print_news(run, home)
        if not locations.keep_checkpoints():
            shutil.rmtree(scratch)
        snapshot.refuse_changed(taken, scratch)  # at the last moment: DVC hashes the inputs after this line
    return 0


def _print_news(run: Run, home: Path) -> None:
    """Print what MLflow refuses and why runs wait for it; in a flow, the flow does."""
    with contextlib.suppress(OSError):  # nobody reads stderr
        for line in () if run.in_flow else pipelines.news(home, pipelines.pipeline_key()):
            print(line, file=sys.stderr, flush=True)


def _work(name: str, main: Callable[[Run], None], given: Mapping[str, float]) -> int:
    """Run ``main`` as a worker, in the folders and with the params of the parent, which does the rest."""
    worker.die_with_parent()
    spool = Spool(worker.spool()) if worker.rank() == 0 else NoSpool()
    try:
        main(Run(name, worker.params(), *_folders(name), worker.scratch(), spool, arguments=given))
    except BaseException as e:
        line = disk.describe(e) if isinstance(e, OSError) else None
        return worker.record_end(UserError(line) if line else e)
    return 0


def _description(identity: Identity, given: Mapping[str, float], root: Path) -> dict[str, Any]:
    return {
        "stage": identity.stage,
        "fingerprint": identity.fingerprint,
        "pipeline": pipelines.pipeline_key(),
        "experiment": os.environ.get("DVC_EXP_NAME", ""),  # of `dvc exp run`
        "params": {key: str(value) for key, value in (identity.params | {**given}).items()},
        "datasets": {path: md5 for path, md5 in identity.deps.items() if not is_code(path)},
        "tags": {"git.revision": git_revision(root) or "none"},
    }


def git_revision(root: Path) -> str:
    """Return git's name of the commit at ``root``, with -dirty if files were changed since; "" outside of git."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _metrics(reports: Path) -> dict[str, float]:
    path = reports / "metrics.json"
    return flatten(json.loads(path.read_text())) if path.exists() else {}


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
