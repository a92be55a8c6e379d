"""The tracker as stages and flows see it: start the shipper, close a pipeline's run, find a stage's run.

Nothing here imports mlflow; `shipper` does, in a process of its own.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from stages.contract import places
from stages.contract.identity import locked_fingerprint
from stages.contract.spool import flatten, write_json
from stages.contract.starter import started, starter

DONE = ("Completed", "Cached")  # states in which a stage's entry in dvc.lock is its present result
REPOSITORY = Path(__file__).resolve().parents[2]


def pipeline_key() -> str:
    """What the stages of one pipeline share: the flow's VERDICT_PIPELINE, or the `dvc repro` that started them."""
    if key := os.environ.get("VERDICT_PIPELINE"):
        return key
    pid = starter()
    return f"dvc-{pid}-{started(pid)}"


def start_shipper(home: Path) -> None:
    """Start the process that sends spools to MLflow. Returns at once; one already at work makes this a no-op.

    It has its own session and no inherited output, so that neither an interrupt of the pipeline reaches it nor
    a pipe waits for it.
    """
    if os.environ.get("VERDICT_TRACKING") == "off":
        return
    log = home / ".verdict" / "shipper.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as out:
        subprocess.Popen(
            [sys.executable, "-m", "stages.contract.shipper", str(home)],
            cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip


def close_pipeline(key: str, states: dict[str, str], root: Path) -> None:
    """Spool the end of pipeline ``key``: each stage's final state (Completed, Cached, Failed, NotReady ...),
    what every stage reported, params.yaml and dvc.lock. Every stage is linked to the MLflow run that made it,
    also the cached ones."""
    home = places.home(root)
    folder = places.spools(home) / f"pipeline-{key}"
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    for file in ("params.yaml", "dvc.lock"):
        if (root / file).exists():
            shutil.copy(root / file, folder / "artifacts" / file)
    done = all(state in DONE for state in states.values())
    fingerprints = locked_fingerprints(root)
    metrics = {}
    for stage in states:
        path = root / "reports" / stage / "metrics.json"
        if path.exists():
            metrics |= flatten(json.loads(path.read_text()), f"{stage}.")
    write_json(folder / "end.json", {
        "pipeline": key, "status": "FINISHED" if done else "FAILED", "states": states,
        "fingerprints": {s: fingerprints[s] for s in states if s in fingerprints and states[s] in DONE},
        "metrics": metrics,
    })  # fmt: skip
    start_shipper(home)


def locked_fingerprints(root: Path) -> dict[str, str]:
    """stage -> fingerprint, of every stage recorded in dvc.lock."""
    lock = root / "dvc.lock"
    stages = YAML(typ="safe").load(lock.read_text())["stages"] if lock.exists() else {}
    return {name: locked_fingerprint(entry) for name, entry in stages.items()}


def stage_seconds(root: Path) -> dict[str, float]:
    """stage -> seconds of its last finished execution, as far as known on this machine."""
    home = places.home(root)
    found = []
    for path in places.run_records(home).glob("*.json"):
        record = json.loads(path.read_text())
        if record.get("seconds"):  # older records have none
            found.append((record["end"], record["stage"], record["seconds"]))
    for path in places.spools(home).glob("*/run.json"):  # not sent yet
        with contextlib.suppress(OSError):  # not ended yet, or sent meanwhile
            run, end = json.loads(path.read_text()), json.loads(path.with_name("end.json").read_text())
            if end["status"] == "FINISHED":
                found.append((end["end"], run["stage"], end["metrics"]["stage_seconds"]))
    return {stage: seconds for _, stage, seconds in sorted(found)}


def run_links(root: Path) -> dict[str, dict[str, str]]:
    """stage -> {"run_id", "url"} of the MLflow run that made its present result, as far as known on this machine."""
    records = places.run_records(places.home(root))
    paths = {stage: records / f"{fingerprint}.json" for stage, fingerprint in locked_fingerprints(root).items()}
    return {stage: json.loads(path.read_text()) for stage, path in paths.items() if path.exists()}
