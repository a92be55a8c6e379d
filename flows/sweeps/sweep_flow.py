"""The sweep as a Prefect flow: Optuna draws params; each trial is a DVC experiment, and several run at once."""

import itertools
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed

from flows import alerts
from flows.execution.lifeline import lifeline
from flows.execution.pipeline_flow import tag_run
from flows.retraining import git, workspace
from flows.sweeps import mirror, study
from flows.sweeps.space import Space, as_yaml, overrides, parse
from flows.sweeps.trial import Ended, Sweep, tree
from flows.sweeps.trial import Trial as Attempt
from stages.contract.errors import UserError

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

HOPELESS = 3  # trials that fail before any succeeds


@flow(name="sweep", persist_result=False, **alerts.HOOKS)
def sweep(
    space: list[str],
    metric: str,
    maximize: bool = False,
    trials: int | None = None,
    jobs: int = 1,
    watch: str | None = None,
    name: str = "sweep",
    root: str = ".",
) -> State:
    """Try points of ``space`` until there are ``trials``, and rank them by ``metric``.

    Args:
        space: ``KEY=LOW..HIGH``, ``KEY=LOW..HIGH:log`` or ``KEY=ONE,TWO``; KEY as in params.yaml, dotted.
        metric: ``STAGE.KEY`` of reports/STAGE/metrics.json. The pipeline runs up to that stage.
        trials: their number, earlier ones included; default every point of a grid of choices, otherwise 20.
        jobs: trials at once. With several, each has its own GPU.
        watch: ``STAGE.NAME`` of a metric that its trainer logs, lower is better. A trial above the median is stopped.
        name: of the study. The same name resumes it.
        root: the git and DVC repository. Trials start from its last commit; its checkout is left alone.

    Final state: Completed with the table of trials; Cancelled, named Busy if the study is at work elsewhere, or
    interrupted; Failed with a message.
    """
    repository = Path(root).resolve()
    tag_run(repository)
    try:
        parsed = parse(space, repository / "params.yaml")
        about = Sweep(repository, name, _base(repository), alerts.this_run(), metric, watch, jobs)
        with (
            workspace.recorded_at(repository),
            study.open_study(repository, name, about.base, parsed, metric, maximize) as memory,
            lifeline() as held,
        ):
            count = study.trials_wanted(parsed, trials)
            study.fill(memory, parsed, count)
            try:
                _run_trials(about, parsed, memory, count, held.interrupted)
            finally:
                mirror.mirror_study(repository, name, memory, metric, _warn)
            return _end(memory, metric, held.interrupted)
    except workspace.Busy as e:
        return Cancelled(name="Busy", message=str(e))
    except UserError as e:
        return Failed(message=str(e))


def _base(repository: Path) -> str:
    """Return the repository's last commit; raise UserError for uncommitted changes that matter."""
    git.branch(repository)
    if files := workspace.uncommitted(repository, git.changed(repository)):
        raise UserError(f"not committed: {', '.join(files)}. Trials start from the last commit: commit or stash first.")
    return git.git(repository, "rev-parse", "HEAD")


def _run_trials(
    about: Sweep, space: Space, memory: "Study", count: int, interrupted: threading.Event
) -> None:  # fmt: skip
    """Run trials, one at a time in each slot, until ``count`` have ended or ``interrupted`` is set.

    Raises:
        UserError: the first trials failed, or a trial failed for a reason that is the same for all.
    """
    lock, running = threading.Lock(), set[int]()

    def draw() -> "Trial | None":
        with lock:
            if interrupted.is_set() or study.tried(memory) + len(running) >= count:
                return None
            trial = study.ask(memory, space)
            running.add(trial.number)
            return trial

    def work(slot: int, device: str | None) -> None:
        try:
            while (trial := draw()) is not None:
                ended = _attempt(about, trial, slot, device, interrupted)
                with lock:
                    running.remove(trial.number)
                    study.record(memory, trial, ended)
                    _refuse_hopeless(memory)
        except BaseException:
            interrupted.set()  # the other slots' trials would fail alike
            raise

    slots = _slots(about.jobs)
    try:
        with ThreadPoolExecutor(len(slots)) as pool:  # a task needs the flow's context, each thread its own copy
            workers = [pool.submit(partial(copy_context().run, work, *slot)) for slot in slots]
            for worker in as_completed(workers):
                worker.result()
    finally:
        for number, _ in slots:
            git.remove_worktree(about.repository, tree(about, number))


def _slots(jobs: int) -> list[tuple[int, str | None]]:
    """Return a number for each trial at once, with its own GPU or None for all GPUs."""
    devices = gpus() if jobs > 1 else []
    if devices and jobs > len(devices):
        _warn(f"{len(devices)} at once, not {jobs}: a GPU each")
    return list(enumerate(devices or [None] * jobs))[:jobs]


def gpus() -> list[str]:
    """Return the values that CUDA_VISIBLE_DEVICES may have here, one a GPU."""
    if (stated := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return list(itertools.takewhile(lambda device: device not in ("", "-1"), stated.split(",")))
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return []
    return [str(k) for k, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]


def _refuse_hopeless(memory: "Study") -> None:
    ended = study.best_first(memory)
    failures = [trial.user_attrs["failed"] for trial in ended if "failed" in trial.user_attrs]
    if len(failures) == len(ended) >= HOPELESS:
        raise UserError(f"the first {HOPELESS} trials failed; the last: {failures[-1]}")


def _warn(line: str) -> None:
    get_run_logger().warning("%s", line, extra={"stage": "sweep"})


def _attempt(about: Sweep, trial: "Trial", slot: int, device: str | None, interrupted: threading.Event) -> Ended:
    """Run ``trial`` as a Prefect task and return how it ended. Raises what it raised."""
    point, sign = trial.params, -1 if trial.study.direction.name == "MAXIMIZE" else 1
    words = " ".join(overrides(point))
    ended: Ended | BaseException = Ended("Cancelled")

    def report(step: int, value: float) -> bool:
        trial.report(sign * value, step)  # Optuna's pruner goes by the study's direction
        return not trial.should_prune()

    @task(name="trial", task_run_name=f"{about.name}-{trial.number}", cache_policy=NO_CACHE, persist_result=False)
    def attempt_trial() -> State:
        nonlocal ended
        log, began = get_run_logger(), time.monotonic()

        def emit(line: str) -> None:
            log.info("%s", line, extra={"stage": f"{trial.number}"})

        emit(f"trial {trial.number}: {words}")
        try:
            ended = Attempt(about, trial.number, point, slot, device, emit, report, interrupted).run()
            trial.set_user_attr("seconds", round(time.monotonic() - began, 1))
        except BaseException as e:
            ended = e
            return Failed(message=str(e))
        result = f"{about.metric} {ended.value:.6g}" if ended.value is not None else ended.message
        result = result or "worse than the median"
        emit(f"trial {trial.number}: {ended.state.lower()}, {result}")
        kind = {"Failed": Failed, "Cancelled": Cancelled}.get(ended.state, Completed)
        return kind(name=ended.state, message=f"{words}: {result}")

    attempt_trial(return_state=True)
    if isinstance(ended, BaseException):
        study.record(trial.study, trial, Ended("Cancelled"))
        raise ended
    return ended


def _end(memory: "Study", metric: str, interrupted: threading.Event) -> State:
    """Return the flow's final state, with the table of trials."""
    trials = study.best_first(memory)
    table = _table(trials, metric)
    if trials:
        create_markdown_artifact(key="trials", markdown=f"```\n{table}\n```", description="Best first")
    if interrupted.is_set():
        advice = f"interrupted after {len(trials)} trials; the same command resumes the sweep"
        return Cancelled(message="\n\n".join([table, advice] if trials else [advice]))
    best = trials[0].user_attrs.get("experiment") if trials and trials[0].state.name == "COMPLETE" else None
    if best is None:
        return Failed(message=f"{table}\n\nNo trial came to an end.")
    return Completed(message=f"{table}\n\nTake the best: dvc exp apply {best}")


def _table(trials: "list[FrozenTrial]", metric: str) -> str:
    """Return a table of ended ``trials``, best first: number, params, metric, state, time."""
    params = list(dict.fromkeys(key for trial in trials for key in trial.params))
    rows = [["trial", *params, metric, "", "seconds"]]
    for trial in trials:
        done = trial.state.name == "COMPLETE"
        drawn = [trial.params.get(key, "") for key in params]
        values = [f"{value:.4g}" if isinstance(value, float) else as_yaml(value) for value in drawn]
        state = trial.user_attrs.get("experiment") or trial.user_attrs.get("failed") or "pruned"
        seconds = f"{trial.user_attrs.get('seconds', 0):.0f}"
        rows.append([str(trial.number), *values, f"{trial.value:.6g}" if done else "-", state, seconds])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
