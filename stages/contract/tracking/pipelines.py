"""The tracker as stages and flows see it: start the shipper, begin and close a pipeline's run, find a stage's run.

Nothing here imports mlflow; `shipper` does, in a process of its own.
"""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from stages.contract.files import Locked, locked
from stages.contract.identity import locked_fingerprint, recorded_stages
from stages.contract.process.lifetime import age, started, starter
from stages.contract.tracking import delivery, locations, tracker
from stages.contract.tracking.spool import (
    HEADLINE,
    Owner,
    RunRecord,
    flatten,
    read_as,
    read_object,
    read_summary,
    warn,
    write_json,
)

REPORT = "reports/index.html"  # of stages.evaluation.reporting
DONE = ("Completed", "Cached")  # states in which a stage's entry in dvc.lock is its present result
REPOSITORY = Path(__file__).resolve().parents[3]
LOG_BYTES = 1_000_000  # shipper.log begins anew above it
LONGEST_KEY = 200  # bytes
PATIENCE = 30.0  # seconds a flow's end waits for the first word of the shipper, which mostly came long ago


def pipeline_key() -> str:
    """Return the key of this stage's pipeline: VERDICT_PIPELINE of a flow, or the `dvc repro` that runs the stages."""
    if key := os.environ.get("VERDICT_PIPELINE"):
        return key
    pid = starter()
    return f"dvc-{pid}-{started(pid)}"


def is_off() -> bool:
    """Return whether nothing is recorded in MLflow."""
    return os.environ.get("VERDICT_TRACKING") == "off"


def start_shipper(home: Path) -> None:
    """Start the process that sends spools to MLflow. Returns at once; one already at work makes this a no-op.

    It has its own session and no inherited output, so that neither an interrupt of the pipeline reaches it nor
    a pipe waits for it.
    """
    if is_off():
        return
    log = home / ".verdict" / "shipper.log"
    try:
        with locked(locations.shipper_lock(home)):
            pass  # none is at work; a process that finds this out spends 0.6 s of CPU
        with log.open("w" if log.exists() and log.stat().st_size > LOG_BYTES else "a") as out:
            _begin_shipper(home, out)
    except Locked:
        return
    except OSError as e:  # a full disk, or no process left
        warn("nothing is sent to MLflow now", e, log)


def _begin_shipper(home: Path, out: TextIO) -> None:
    subprocess.Popen(
        [sys.executable, "-m", "stages.contract.tracking.shipper", str(home)],
        cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
    )  # fmt: skip


def news(home: Path, pipeline: str, patience: float = 0.0) -> list[str]:
    """Return lines for the terminal: what MLflow refuses, and how many runs wait for it and why.

    Each line is returned once a ``pipeline``. With ``patience``, wait that many seconds for what the shipper learns of
    a server after the start of this process.
    """
    if is_off():
        return []
    began = time.time() - age()
    if patience and locations.tracking_uri(home).startswith("http"):
        delivery.wait(home, began, patience)
    return delivery.delivery_news(home, pipeline, began, tracker.glance(home))


def begin_pipeline(key: str, root: Path) -> None:
    """Note that this process closes the run of pipeline ``key``. If it is killed first, the next shipper does."""
    folder = _pipeline_folder(key, locations.home(root))
    with contextlib.suppress(OSError):  # then its run may stay open
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "begin.json", {"pipeline": key} | asdict(Owner.this()))


def close_killed(root: Path) -> None:
    """Have the shipper close the MLflow runs of pipelines whose process was killed, if there are any."""
    home = locations.home(root)
    if any(locations.spools(home).glob("pipeline-*")):
        start_shipper(home)


def close_pipeline(key: str, states: dict[str, str], root: Path) -> None:
    """Spool the end of pipeline ``key``: the states of its stages, their headline figures and the closing table.

    params.yaml, dvc.lock and the report page become artifacts. Every stage is linked to the MLflow run that made it,
    a cached one too.

    Args:
        key: of `begin_pipeline`.
        states: final state of each stage: Completed, Cached, Failed, NotReady ...
        root: the repository.
    """
    home = locations.home(root)
    folder = _pipeline_folder(key, home)
    status = "FINISHED" if all(state in DONE for state in states.values()) else "FAILED"
    status = "KILLED" if "Cancelled" in states.values() else status
    fingerprints = locked_fingerprints(root)
    done = [stage for stage, state in states.items() if state in DONE]
    metrics: dict[str, float] = {}
    for stage in done:
        metrics |= flatten(read_object(root / "reports" / stage / HEADLINE))
    summaries = [text for stage in done if (text := read_summary(root / "reports" / stage))]
    try:
        (folder / "artifacts").mkdir(parents=True, exist_ok=True)
        for file in ("params.yaml", "dvc.lock", *([REPORT] if summaries and status == "FINISHED" else [])):
            if (root / file).exists():
                shutil.copy(root / file, folder / "artifacts")
        write_json(folder / "end.json", {
            "pipeline": key, "status": status, "states": states,
            "fingerprints": {stage: fingerprints[stage] for stage in done if stage in fingerprints},
            "metrics": metrics, "summary": "\n\n".join(summaries),
        })  # fmt: skip
    except OSError as e:
        warn("the end of this pipeline cannot be recorded for MLflow", e, folder)
    start_shipper(home)


def _pipeline_folder(key: str, home: Path) -> Path:
    """Return the spool of a pipeline's run. A folder's name has 255 bytes and no slash."""
    name = re.sub(r"[^\w.=+@ -]", "_", key)
    if name != key or len(name.encode()) > LONGEST_KEY:
        name = f"{name[:60]}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    return locations.spools(home) / f"pipeline-{name}"


def locked_fingerprints(root: Path) -> dict[str, str]:
    """Return stage -> fingerprint of every stage recorded in dvc.lock."""
    return {name: locked_fingerprint(entry) for name, entry in recorded_stages(root).items()}


def stage_seconds(root: Path) -> dict[str, float]:
    """Return stage -> seconds of its last finished execution, as far as known on this machine."""
    home = locations.home(root)
    sent = [read_as(path, RunRecord) for path in locations.run_records(home).glob("*.json")]
    waiting = [_finished(path.parent) for path in locations.spools(home).glob("*/run.json")]
    executions = sorted((run.end, run.stage, run.seconds) for run in (*sent, *waiting) if run and run.seconds)
    return {stage: seconds for _, stage, seconds in executions}


def _finished(spool: Path) -> RunRecord | None:
    """Return the record of a finished execution that MLflow has not got yet."""
    run, end = read_object(spool / "run.json"), read_object(spool / "end.json")
    if end.get("status") != "FINISHED":
        return None
    with contextlib.suppress(KeyError, TypeError, ValueError):  # of another version; the shipper says so
        return RunRecord("", "", str(run["stage"]), int(end["end"]), float(end["metrics"]["stage_seconds"]))
    return None


def run_links(root: Path) -> dict[str, dict[str, str]]:
    """Return stage -> {"run_id", "url"} of the MLflow run that made its present result, as far as known here.

    The address is that of MLflow's server now, which may have another port than when the run was recorded.
    """
    server, records = locations.tracking_server(locations.home(root)), locations.run_records(locations.home(root))
    known = {name: read_as(records / f"{mark}.json", RunRecord) for name, mark in locked_fingerprints(root).items()}
    runs = {name: run for name, run in known.items() if run}
    return {name: {"run_id": run.run_id, "url": f"{server}/#{run.url.partition('#')[2]}"} for name, run in runs.items()}
