"""One point of a sweep: the pipeline in a worktree of its own, up to the stage that reports the metric.

Not by `dvc exp run --temp` or `--queue`: several of them at once wait for one another at the repository's lock, and a
process that runs a whole pipeline cannot be asked how far it is and be stopped there. What is left is the same, a DVC
experiment: a commit on the one the sweep began from, under refs/exps, with params.yaml and dvc.lock as they were.
"""

import hashlib
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from flows import alerts, git, remote, workspace
from flows.curve import Curve
from flows.graph import Stage, override, plan
from flows.space import Point, overrides
from flows.stage import run
from stages.contract import tracking
from stages.contract.errors import UserError
from stages.contract.identity import identify
from stages.contract.run import forget

POLL_SECONDS = 0.25
PREPARING = threading.Lock()  # Hydra, with which DVC sets params, has one state a process
# By a stage's fingerprint: what two trials need is made by one of them, and the other finds it in DVC's run cache.
MAKING: dict[str, threading.Lock] = defaultdict(threading.Lock)


@dataclass(frozen=True)
class Sweep:
    """What all trials of a sweep share."""

    repository: Path
    name: str
    base: str  # the commit they start from
    source: alerts.Source  # whose alerts its stages' are
    metric: str  # STAGE.KEY of reports/STAGE/metrics.json
    watch: str | None = None  # STAGE.NAME of what its trainer logs, the lower the better
    jobs: int = 1  # how many trials at once


@dataclass(frozen=True)
class Ended:
    """How a trial ended. ``state``: Completed, Pruned, Failed or Cancelled."""

    state: str
    value: float | None = None  # of the metric
    message: str = ""
    experiment: str = ""  # the DVC experiment's name


def tree(sweep: Sweep, slot: int) -> Path:
    """The worktree of the trials in one of the sweep's slots. It stays from trial to trial."""
    return sweep.repository / ".verdict" / "sweeps" / f"{sweep.name}-{slot}"


def key(sweep: Sweep, point: Point) -> str:
    """What the trial's stages are recorded under; the same when it is tried again, which resumes them."""
    said = "-".join(overrides(point)).replace("/", "_")
    digest = hashlib.sha256(said.encode()).hexdigest()[:12]
    return f"sweep-{sweep.name}-{said[:40]}-{digest}"  # a folder's name, which has 255 bytes


def attempt(
    sweep: Sweep, number: int, point: Point, slot: int, device: str | None, emit: Callable[[str], None],
    report: Callable[[int, float], bool], interrupted: threading.Event,
) -> Ended:  # fmt: skip
    """Bring the worktree of ``slot`` to the metric at ``point``, and record it as a DVC experiment.

    ``device`` is the GPU its stages may use, None for all. ``report`` is told each step and value of the curve that is
    watched, and answers whether to go on; where it does not, and when ``interrupted`` is set, the stage is stopped.

    Raises:
        UserError: the repository, the params, the metric's or the watched name are not in order, whatever the point.
    """
    place = tree(sweep, slot)
    remote.quiet()
    with PREPARING:
        workspace.checkout(sweep.repository, place, sweep.base)
        with override(place / "params.yaml", overrides(point)):
            planned = plan(place, [sweep.metric.partition(".")[0]])
    watched = (sweep.watch or "").partition(".")[0]
    if sweep.watch and watched not in [stage.name for stage in planned]:
        raise UserError(
            f"--watch {sweep.watch}: {watched} is none of the stages up to the metric. Write STAGE.NAME; stages: "
            f"{', '.join(stage.name for stage in planned)}."
        )
    env = {"VERDICT_PIPELINE": key(sweep, point)} | ({"CUDA_VISIBLE_DEVICES": device} if device else {})
    if sweep.jobs > 1:  # OpenMP's threads wait for each other awake, on cores that another trial's want: 2.3x the time
        env["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "passive")
    recall, states = remote.Recall(place), {}
    for stage in planned:
        state, message = "Cached", ""
        if not stage.fresh:
            with PREPARING:
                identity = identify(stage.name, place)
                making = MAKING[identity.fingerprint]
            with making:
                if not interrupted.is_set():
                    recall.look_for(stage.name, emit)
                state, message = _stage(sweep, stage, place, env, emit, report, interrupted)
                if state == "Pruned":  # the point is not tried again
                    forget(identity)
        states[stage.name] = state
        if state not in tracking.DONE:
            break
    tracking.close_pipeline(env["VERDICT_PIPELINE"], states, place)
    if state not in tracking.DONE:
        return Ended(state, None, message)
    value = metric(place, sweep.metric)
    if value is None:
        return Ended("Failed", None, f"{sweep.metric} is not a finite number")
    name = f"{sweep.name}-{number}"
    record(sweep, place, name)
    return Ended("Completed", value, "", name)


def _stage(sweep, stage: Stage, place, env, emit, report, interrupted) -> tuple[str, str]:
    """The state in which ``stage`` ended, and why."""
    if interrupted.is_set():
        return "Cancelled", "interrupted"
    key = env["VERDICT_PIPELINE"]
    watched, _, name = (sweep.watch or "").partition(".")
    for _ in range(1 + stage.retries):
        curve = Curve(place, stage.name, name, key) if watched == stage.name else None
        (read, lifeline), over = os.pipe(), threading.Event()
        with (
            os.fdopen(read),
            alerts.watching(sweep.source, stage.name, place, key) as hear,
            ThreadPoolExecutor(1) as pool,
        ):
            watching = pool.submit(_watch, curve, lifeline, report, interrupted, over)
            try:
                outcome = run(stage, place, lambda line: (emit(line), hear(line)), env, read)
            finally:
                over.set()
        pruned = watching.result()
        if interrupted.is_set() or outcome.state == "Cancelled":
            return ("Pruned", "") if pruned else ("Cancelled", "interrupted")
        if outcome.state != "Preempted":
            break
    if outcome.state in tracking.DONE:
        if curve and curve.names and name not in curve.names:
            raise UserError(f"--watch {sweep.watch}: {watched} logs {', '.join(sorted(curve.names))}.")
        return outcome.state, ""
    return "Failed", f"{stage.name}: " + "; ".join([outcome.message, *outcome.tail[-1:]])


def _watch(curve: Curve | None, lifeline: int, report, interrupted, over) -> bool:
    """Close ``lifeline`` when the stage must stop, and in the end. Whether it was because ``report`` said so."""
    with os.fdopen(lifeline, "w"):
        ended = False
        while not ended and not interrupted.is_set():
            ended = over.wait(POLL_SECONDS)
            for step, value in curve.news() if curve else ():
                if not report(step, value) and not ended:
                    return True
    return False


def metric(place: Path, name: str) -> float | None:
    """The number that ``name``, STAGE.KEY, has in reports/STAGE/metrics.json; None if it is infinite or not a number.

    Raises:
        UserError: there is none.
    """
    stage, _, rest = name.partition(".")
    path = place / "reports" / stage / "metrics.json"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"--metric {name}: stage {stage} writes no reports/{stage}/metrics.json.") from None
    from stages.contract.spool import flatten

    numbers = flatten(json.loads(text))
    if rest in flatten(json.loads(text, parse_constant=lambda _: 0)).keys() - numbers.keys():  # it leaves out NaN
        return None
    if rest not in numbers:
        raise UserError(f"--metric {name}: {stage} reports {', '.join(f'{stage}.{key}' for key in numbers)}.")
    return float(numbers[rest])


def record(sweep: Sweep, place: Path, name: str) -> None:
    """Make what is in the worktree the DVC experiment ``name``, as `dvc exp run --name` would have."""
    git.git(place, "add", "-u")
    git.git(place, "add", "--", "dvc.lock")
    commit = git.commit(place, sweep.base, f"dvc: commit experiment {name}")
    ref = f"refs/exps/{sweep.base[:2]}/{sweep.base[2:]}/{name}"
    for _ in range(5):  # refs of one repository are locked one at a time
        if git.succeeds(place, "update-ref", ref, commit):
            return
        time.sleep(0.2)
    git.git(place, "update-ref", ref, commit)
