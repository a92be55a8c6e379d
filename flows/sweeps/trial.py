"""One trial of a sweep: the pipeline in a worktree of its own, up to the stage that reports the metric.

`dvc exp run --temp` and `--queue` are not used: parallel runs would wait for the repository's lock, and a process that
runs a whole pipeline cannot be watched or stopped between stages. The result is a DVC experiment as well: a commit on
the sweep's base commit, under refs/exps, with its own params.yaml and dvc.lock.
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
from typing import Any

from flows import alerts
from flows.execution import remote
from flows.execution.graph import plan, quiet_dvc
from flows.execution.lifeline import Lifeline
from flows.execution.overrides import override
from flows.execution.stage_process import run
from flows.execution.waiting import until_free
from flows.execution.watching import WatchedMetric, watching
from flows.planned import Outcome, Stage
from flows.retraining import git, workspace
from flows.sweeps.space import Point, overrides
from stages.contract.errors import UserError
from stages.contract.identity import identify
from stages.contract.scratch import forget
from stages.contract.tracking import pipelines

POLL_SECONDS = 0.25
PREPARING = threading.Lock()  # DVC sets params by Hydra, whose state is global to the process
# Fingerprint of a stage -> lock: if two trials need one result, one makes it and the other reads it from the run cache.
MAKING: dict[str, threading.Lock] = defaultdict(threading.Lock)


@dataclass(frozen=True)
class Sweep:
    """The settings that all trials of a sweep share."""

    repository: Path
    name: str
    base: str  # the commit they start from
    source: alerts.AlertSource  # the flow run that alerts name
    metric: str  # STAGE.KEY of reports/STAGE/metrics.json
    watch: str | None = None  # STAGE.NAME of a metric that the stage's trainer logs, lower is better
    jobs: int = 1  # trials at once


@dataclass(frozen=True)
class Ended:
    """The end of a trial. ``state``: Completed, Pruned, Failed or Cancelled."""

    state: str
    value: float | None = None  # of the metric
    message: str = ""
    experiment: str = ""  # the DVC experiment's name


def tree(sweep: Sweep, slot: int) -> Path:
    """Return the worktree of ``slot``. The trials of a slot use it one after another."""
    return sweep.repository / ".verdict" / "sweeps" / f"{sweep.name}-{slot}"


def key(sweep: Sweep, point: Point) -> str:
    """Return the pipeline's name in MLflow at ``point``. A repeated trial has the same name, and so resumes."""
    words = "-".join(overrides(point)).replace("/", "_")
    digest = hashlib.sha256(words.encode()).hexdigest()[:12]
    return f"sweep-{sweep.name}-{words[:40]}-{digest}"  # it names a folder: at most 255 bytes


@dataclass(frozen=True)
class Trial:
    """A point of ``sweep`` in the worktree of ``slot``.

    Args:
        device: the GPU its stages may use; None for all.
        report: takes each step and value of the watched curve, and returns whether to continue.
        interrupted: event; when it is set, the running stage stops.
    """

    sweep: Sweep
    number: int
    point: Point
    slot: int
    device: str | None
    emit: Callable[[str], None]
    report: Callable[[int, float], bool]
    interrupted: threading.Event

    def run(self) -> Ended:
        """Run the stages up to the metric and record the worktree as a DVC experiment.

        Raises:
            UserError: an error of every point: the repository, params.yaml, or the name in --metric or --watch.
        """
        planned = self._prepare()
        pipelines.begin_pipeline(self.key, self.place)
        recall, states = remote.Recall(self.place), {}
        for stage in planned:
            state, message = ("Cached", "") if stage.fresh else self._make(stage, recall)
            states[stage.name] = state
            if state not in pipelines.DONE:
                break
        pipelines.close_pipeline(self.key, states, self.place)
        if state not in pipelines.DONE:
            return Ended(state, None, message)
        value = metric(self.place, self.sweep.metric)
        if value is None:
            return Ended("Failed", None, f"{self.sweep.metric} is not a finite number")
        name = f"{self.sweep.name}-{self.number}"
        record_experiment(self.sweep, self.place, name)
        return Ended("Completed", value, "", name)

    @property
    def place(self) -> Path:
        return tree(self.sweep, self.slot)

    @property
    def key(self) -> str:
        return key(self.sweep, self.point)

    def _prepare(self) -> list[Stage]:
        """Check the sweep's commit out, set the point's params and plan."""
        quiet_dvc()
        until_free(self.place, self.emit)
        with PREPARING:
            workspace.checkout(self.sweep.repository, self.place, self.sweep.base)
            with override(self.place / "params.yaml", overrides(self.point)):
                planned = plan(self.place, [self.sweep.metric.partition(".")[0]])
        watched, names = (self.sweep.watch or "").partition(".")[0], [stage.name for stage in planned]
        if watched and watched not in names:
            raise UserError(
                f"--watch {self.sweep.watch}: {watched} is not among the stages up to the metric. Write STAGE.NAME; "
                f"stages: {', '.join(names)}."
            )
        return planned

    def _make(self, stage: Stage, recall: remote.Recall) -> tuple[str, str]:
        """Run ``stage``, unless another trial is making the same result; return its state and the reason."""
        with PREPARING:
            identity = identify(stage.name, self.place)
            making = MAKING[identity.fingerprint]
        with making:
            if self.interrupted.is_set():
                return "Cancelled", "interrupted"
            recall.look_for(stage.name, self.emit)
            for _ in range(1 + stage.retries):
                outcome, pruned = self._execute(stage)
                if pruned:  # the point is not tried again
                    forget(identity)
                    return "Pruned", ""
                if self.interrupted.is_set() or outcome.state == "Cancelled":
                    return "Cancelled", "interrupted"
                if outcome.state != "Preempted":
                    break
        if outcome.state in pipelines.DONE:
            return outcome.state, ""
        return "Failed", f"{stage.name}: " + "; ".join([outcome.message, *outcome.tail[-1:]])

    def _execute(self, stage: Stage) -> tuple[Outcome, bool]:
        """Run ``stage`` once; return its outcome and whether ``report`` stopped it."""
        env = {"VERDICT_PIPELINE": self.key} | ({"CUDA_VISIBLE_DEVICES": self.device} if self.device else {})
        if self.sweep.jobs > 1:  # OpenMP's threads spin while they wait, on cores that another trial needs: 2.3x slower
            env["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "passive")
        watched, _, name = (self.sweep.watch or "").partition(".")
        curve = WatchedMetric(self.place, stage.name, name, self.key) if watched == stage.name else None
        lifeline, over = Lifeline(), threading.Event()
        with (
            watching(self.sweep.source, stage.name, self.place, self.key, self.emit) as emit,
            ThreadPoolExecutor(1) as pool,
        ):
            watcher = pool.submit(self._watch, curve, lifeline, over)
            try:
                outcome = run(stage, self.place, emit, env, lifeline.end)
            finally:
                over.set()
                pruned = watcher.result()
                lifeline.close()
        if curve and outcome.state in pipelines.DONE and curve.names and name not in curve.names:
            raise UserError(f"--watch {self.sweep.watch}: {watched} logs {', '.join(sorted(curve.names))}.")
        return outcome, pruned

    def _watch(self, curve: WatchedMetric | None, lifeline: Lifeline, over: threading.Event) -> bool:
        """Cut ``lifeline`` when the stage must stop. Return whether ``report`` stopped it."""
        ended = False
        while not ended and not self.interrupted.is_set():
            ended = over.wait(POLL_SECONDS)
            for step, value in curve.news() if curve else ():
                if not self.report(step, value) and not ended:
                    lifeline.cut()
                    return True
        lifeline.cut()
        return False


def metric(place: Path, name: str) -> float | None:
    """Return the number ``name``, STAGE.KEY, of reports/STAGE/metrics.json; None if it is infinite or NaN.

    Raises:
        UserError: it is not there.
    """
    from stages.contract.tracking.spool import flatten

    stage, _, rest = name.partition(".")
    path = place / "reports" / stage / "metrics.json"
    if not path.exists():
        raise UserError(f"--metric {name}: stage {stage} writes no reports/{stage}/metrics.json.")
    figures, finite = _parse(path, parse_constant=lambda _: 0.0), flatten(_parse(path))
    if rest in flatten(figures).keys() - finite.keys():
        return None
    if rest not in finite:
        raise UserError(f"--metric {name}: {stage} reports {', '.join(f'{stage}.{key}' for key in finite)}.")
    return float(finite[rest])


def _parse(path: Path, **options: Any) -> dict[str, Any]:
    try:
        if isinstance(value := json.loads(path.read_text(encoding="utf-8"), **options), dict):
            return value
    except (ValueError, RecursionError):
        pass
    raise UserError(f"{path}: not the JSON object that a stage writes. Run the stage again.")


def record_experiment(sweep: Sweep, place: Path, name: str) -> None:
    """Commit the worktree ``place`` as the DVC experiment ``name``, as `dvc exp run --name` does."""
    git.git(place, "add", "-u")
    git.git(place, "add", "--", "dvc.lock")
    commit = git.commit(place, sweep.base, f"dvc: commit experiment {name}")
    ref = f"refs/exps/{sweep.base[:2]}/{sweep.base[2:]}/{name}"
    for _ in range(5):  # parallel trials compete for git's lock on refs
        if git.succeeds(place, "update-ref", ref, commit):
            return
        time.sleep(0.2)
    git.git(place, "update-ref", ref, commit)
