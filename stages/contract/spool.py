"""What a stage tells the tracker, as files. Writing a line is all that training ever waits for.

A spool is a folder of .verdict/spool:

    run.json       stage, fingerprint, params, datasets, tags, start, pid
    metrics.jsonl  one line a step: {"t": ms, "s": step, "m": {name: value}}
    end.json       status, end, metrics, outs      (absent: running, or killed)
    artifacts/     copies of the stage's reports

`shipper` sends spools to MLflow from a process of its own and deletes what has arrived; what has not stays
and is sent by a later run. A log call to a server that is down was measured to block for 247 s.
"""

import json
import math
import os
import shutil
import time
from pathlib import Path

from stages.contract.starter import started


class Spool:
    """The spool of one stage execution. A run that resumes goes on in the spool of the one that was killed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.resumed_step = _last_step(folder / "metrics.jsonl")
        self._metrics = (folder / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record ``metrics`` at ``step``. Steps logged before a kill are repeated exactly by the resumed run,
        and are not recorded twice (MLflow keeps both points: mlflow#4248)."""
        finite = {k: float(v) for k, v in metrics.items() if math.isfinite(v)}
        if step <= self.resumed_step or not finite:
            return
        self._metrics.write(json.dumps({"t": _now(), "s": step, "m": finite}) + "\n")

    def end(self, status: str, metrics: dict[str, float], outs: dict[str, str], reports: Path | None) -> None:
        """``status``: MLflow's FINISHED, FAILED or KILLED."""
        self._metrics.close()
        if reports and reports.exists():
            shutil.copytree(reports, self.folder / "artifacts", dirs_exist_ok=True)
        write_json(self.folder / "end.json", {"status": status, "end": _now(), "metrics": metrics, "outs": outs})


class NoSpool:
    """Of a process beside the one that records."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        pass


def open_spool(spools: Path, run: dict) -> Spool:
    """The unfinished spool of the same stage and fingerprint, or a new one.

    ``run`` holds stage, fingerprint, pipeline, params, datasets and tags.
    """
    name = f"{run['stage']}-{run['fingerprint'][:16]}"
    unfinished = [d for d in sorted(spools.glob(f"{name}-*")) if not (d / "end.json").exists()]
    if unfinished:
        folder = unfinished[-1]
        run = json.loads((folder / "run.json").read_text()) | _this_process()
    else:
        folder = spools / f"{name}-{_now()}"
        folder.mkdir(parents=True)
        run = run | {"start": _now()} | _this_process()
    write_json(folder / "run.json", run)
    return Spool(folder)


def write_json(path: Path, value) -> None:
    """Written aside and renamed: a reader sees all of it or none."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    aside.replace(path)


def flatten(metrics: dict, prefix: str = "") -> dict[str, float]:
    """Nested metrics as dotted names; only finite numbers stay."""
    flat: dict[str, float] = {}
    for key, value in metrics.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= flatten(value, f"{name}.")
        elif isinstance(value, int | float) and math.isfinite(value):
            flat[name] = value
    return flat


def _this_process() -> dict:
    return {"pid": os.getpid(), "pid_started": started(os.getpid())}


def _last_step(path: Path) -> int:
    """The last step of a metrics file; a line cut short by a kill is removed."""
    if not path.exists():
        return -1
    whole = [line for line in path.read_text().split("\n")[:-1] if line]
    path.write_text("".join(line + "\n" for line in whole))
    return json.loads(whole[-1])["s"] if whole else -1


def _now() -> int:
    """Milliseconds since the epoch, MLflow's unit."""
    return int(time.time() * 1000)
