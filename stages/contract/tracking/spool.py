"""Files with a stage's records for the tracker. Training waits only until a line is written.

A spool is a folder of .verdict/spool:

    run.json       stage, fingerprint, params, datasets, tags, start, pid
    metrics.jsonl  one line a step: {"t": ms, "s": step, "m": {name: value}}
    end.json       status, end, metrics, outs      (absent: running, or killed)
    artifacts/     copies of the stage's reports

`shipper` sends spools to MLflow from a process of its own and deletes what has arrived; the rest is sent by a later
run. A log call to a server that is down was measured to block for 247 s.
"""

import contextlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from stages.contract.files import atomic_write
from stages.contract.process.lifetime import started

T = TypeVar("T")
# Files in a stage's reports: its few figures that people compare, and figures of models by the models' folders.
HEADLINE, MODEL_FIGURES = "headline.json", "models.json"


class Spool:
    """The spool of one stage execution. A resumed run writes to the spool of the killed one.

    Nothing here raises because of a full disk or a folder that cannot be written: one line is printed about lost
    records, and the stage keeps its work.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.resumed_step = -1
        self._metrics: int | None = None
        self._torn = self._warned = False
        with self._recording("metrics"):
            self.resumed_step = _last_step(folder / "metrics.jsonl")
            self._metrics = os.open(folder / "metrics.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record ``metrics`` at ``step``.

        Steps logged before a kill are repeated exactly by the resumed run, and are not recorded twice (MLflow keeps
        both points: mlflow#4248).
        """
        finite = {name: float(value) for name, value in metrics.items() if _finite(value)}
        if step <= self.resumed_step or not finite or self._metrics is None:
            return
        with self._recording(f"metrics from step {step} on"):
            self._write(json.dumps({"t": _now(), "s": step, "m": finite}))

    def end(self, status: str, metrics: dict[str, float], outs: dict[str, str], reports: Path | None) -> None:
        """Record the end. ``status``: MLflow's FINISHED, FAILED or KILLED."""
        if self._metrics is not None:
            with self._recording("metrics"):
                os.close(self._metrics)
        self._metrics = None
        if reports and reports.exists():
            with self._recording("reports"):
                shutil.copytree(reports, self.folder / "artifacts", dirs_exist_ok=True)
        with self._recording("the end of the stage"):
            write_json(self.folder / "end.json", {"status": status, "end": _now(), "metrics": metrics, "outs": outs})

    def _write(self, line: str) -> None:
        """Write a whole line; one that a full disk cut short is ended first, so that it spoils no other."""
        assert self._metrics is not None
        data = (b"\n" if self._torn else b"") + line.encode() + b"\n"
        self._torn = True
        if os.write(self._metrics, data) < len(data):
            raise OSError(f"{self.folder / 'metrics.jsonl'} could not be written to the end")
        self._torn = False

    @contextlib.contextmanager
    def _recording(self, what: str) -> Iterator[None]:
        """Print one line if ``what`` cannot be recorded; raise nothing."""
        try:
            yield
        except OSError as e:
            if not self._warned:
                warn(f"{what} of this stage cannot be recorded for MLflow and may be lost", e, self.folder)
            self._warned = True


@dataclass(frozen=True)
class Owner:
    """The process that writes a spool: an id alone is used again."""

    pid: int
    pid_started: str  # in clock ticks since boot

    @classmethod
    def this(cls) -> "Owner":
        """Return this process."""
        return cls(os.getpid(), started(os.getpid()))

    def alive(self) -> bool:
        """Whether the process runs."""
        return started(self.pid) == self.pid_started != ""


@dataclass(frozen=True)
class RunRecord:
    """The MLflow run that made a stage's result, in .verdict/runs by the stage's fingerprint."""

    run_id: str
    url: str  # may hold a password
    stage: str
    end: int  # milliseconds
    seconds: float | None = None


class NoSpool:
    """The spool of a process beside the one that records."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        pass


def open_spool(spools: Path, run: dict[str, Any]) -> Spool:
    """Open the unfinished spool of the same stage and fingerprint, or a new one.

    ``run`` holds stage, fingerprint, pipeline, params, datasets and tags.
    """
    name = f"{run['stage']}-{run['fingerprint'][:16]}"
    unfinished = [d for d in sorted(spools.glob(f"{name}-*")) if not (d / "end.json").exists()]
    before = read_object(unfinished[-1] / "run.json") if unfinished else {}
    if unfinished and not before:  # begun on a full disk: nobody can send it
        shutil.rmtree(unfinished[-1], ignore_errors=True)
    resumed = run.keys() <= before.keys()  # not another version's, which the shipper rejects
    folder = unfinished[-1] if resumed else spools / f"{name}-{_now()}"
    run = (before if resumed else run | {"start": _now()}) | asdict(Owner.this())
    with contextlib.suppress(OSError):  # the spool says that it cannot be written
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "run.json", run)
    return Spool(folder)


def write_json(path: Path, value: object) -> None:
    """Write ``value`` to ``path`` as a whole."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_object(path: Path) -> dict[str, Any]:
    """Read the object in ``path``; empty if there is none, or not one that can be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else {}
    return {}


def read_as(path: Path, kind: type[T]) -> T | None:
    """Return the object in ``path`` as the dataclass ``kind``; None if it is not one, as of another version."""
    with contextlib.suppress(ValidationError):
        return TypeAdapter(kind).validate_python(read_object(path))
    return None


def read_summary(reports: Path) -> str:
    """Return the closing table in a stage's ``reports``, in Markdown; "" if it wrote none."""
    with contextlib.suppress(OSError, ValueError):
        return (reports / "summary.md").read_text(encoding="utf-8")
    return ""


def warn(what: str, error: OSError, place: Path) -> None:
    """Print one line: ``what`` is lost, why, and where there is no room."""
    reason = error.strerror or str(error)
    with contextlib.suppress(OSError, ValueError):  # nobody reads stderr
        print(f"warning: {what}: {reason}: {error.filename or place}. Training goes on.", file=sys.stderr, flush=True)


def flatten(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Return nested metrics under dotted names; only finite numbers stay."""
    flat: dict[str, float] = {}
    for key, value in metrics.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= flatten(value, f"{name}.")
        elif isinstance(value, int | float) and _finite(value):
            flat[name] = value
    return flat


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number above 1.8e308
        return False


def _last_step(path: Path) -> int:
    """Return the last step of a metrics file, and cut off a line that a kill cut short."""
    if not path.exists():
        return -1
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    return max((step for line in data[:whole].splitlines() if (step := _step(line)) is not None), default=-1)


def _step(line: bytes) -> int | None:
    try:
        return int(json.loads(line)["s"])
    except (ValueError, KeyError, TypeError):
        return None


def _now() -> int:
    """Return milliseconds since the epoch, MLflow's unit."""
    return int(time.time() * 1000)
